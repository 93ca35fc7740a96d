// The operators as plain C functions, named and called as AOTInductor calls its own: compiled
// segments reach them by symbol, without a table of operators beside the code.
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/library.h>

#include <array>
#include <optional>

namespace {

using torch::stable::Tensor;

Tensor borrow(AtenTensorHandle handle) {
  AtenTensorHandle own;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(handle, &own));
  return Tensor(own);
}

template <size_t N>
AOTITorchError call(const char* name, std::array<StableIValue, N> stack, AtenTensorHandle* result) {
  const AOTITorchError status = aoti_torch_call_dispatcher(name, "", stack.data());
  if (status == AOTI_TORCH_SUCCESS) *result = torch::stable::detail::to<AtenTensorHandle>(stack[0]);
  return status;
}

}  // namespace

#define ENGINE_EXPORT extern "C" __attribute__((visibility("default"))) AOTITorchError

#define ENGINE_C_KERNEL(kernel)                                                                                          \
  ENGINE_EXPORT aoti_torch_cpu_linear_##kernel(AtenTensorHandle x, AtenTensorHandle w, AtenTensorHandle* bias,           \
                                               int64_t out_features, AtenTensorHandle* result) {                        \
    const std::optional<Tensor> maybe_bias = bias ? std::make_optional(borrow(*bias)) : std::nullopt;                    \
    return call<4>("engine::linear_" #kernel, {torch::stable::detail::from(borrow(x)), torch::stable::detail::from(borrow(w)), torch::stable::detail::from(maybe_bias), torch::stable::detail::from(out_features)}, result); \
  }                                                                                                                      \
  ENGINE_EXPORT aoti_torch_cpu_embedding_##kernel(AtenTensorHandle tokens, AtenTensorHandle w, int64_t dim,              \
                                                  AtenTensorHandle* result) {                                            \
    return call<3>("engine::embedding_" #kernel, {torch::stable::detail::from(borrow(tokens)), torch::stable::detail::from(borrow(w)), torch::stable::detail::from(dim)}, result);            \
  }

ENGINE_C_KERNEL(dense)
ENGINE_C_KERNEL(q8_0)
ENGINE_C_KERNEL(q4_0)
ENGINE_C_KERNEL(q4_1)
