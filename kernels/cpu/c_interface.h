// An operator as a plain C function, named and called as AOTInductor calls its own: compiled
// segments reach it by symbol, without a table of operators beside the code.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <cstdio>
#include <exception>
#include <optional>

#include "op.h"

namespace engine {

inline Tensor borrow(AtenTensorHandle handle) {
  AtenTensorHandle own;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(handle, &own));
  return Tensor(own);
}

// Runs `operation`, whose result becomes the caller's. An exception must not cross into C.
template <class Operation>
AOTITorchError return_to_c(AtenTensorHandle* result, Operation operation) noexcept {
  try {
    const Tensor value = operation();
    return aoti_torch_new_tensor_handle(value.get(), result);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return AOTI_TORCH_FAILURE;
  }
}

}  // namespace engine

#define ENGINE_EXPORT extern "C" __attribute__((visibility("default"))) AOTITorchError

// kernel: the last part of the operators' names. linear_function, embedding_function: their implementations.
#define ENGINE_C_KERNEL(kernel, linear_function, embedding_function)                                                      \
  ENGINE_EXPORT aoti_torch_cpu_linear_##kernel(AtenTensorHandle x, AtenTensorHandle w, AtenTensorHandle* bias,            \
                                               int64_t out_features, AtenTensorHandle* result) {                         \
    return engine::return_to_c(result, [&] {                                                                              \
      const auto bias_tensor = bias != nullptr ? std::make_optional(engine::borrow(*bias)) : std::nullopt;                \
      return engine::linear_function(engine::borrow(x), engine::borrow(w), bias_tensor, out_features);                    \
    });                                                                                                                   \
  }                                                                                                                       \
  ENGINE_EXPORT aoti_torch_cpu_embedding_##kernel(AtenTensorHandle tokens, AtenTensorHandle w, int64_t dim,               \
                                                  AtenTensorHandle* result) {                                             \
    return engine::return_to_c(                                                                                           \
        result, [&] { return engine::embedding_function(engine::borrow(tokens), engine::borrow(w), dim); });              \
  }
