// An operator as a plain C function, named and called as AOTInductor calls its own: compiled
// segments reach it by symbol, without a table of operators beside the code.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <exception>
#include <optional>
#include <string>

#include "op.h"

namespace engine {

inline Tensor borrow(AtenTensorHandle handle) {
  AtenTensorHandle own;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(handle, &own));
  return Tensor(own);
}

inline std::optional<Tensor> borrow_optional(AtenTensorHandle* handle) {
  return handle != nullptr ? std::make_optional(borrow(*handle)) : std::nullopt;
}

// Why this thread's last operation failed.
inline std::string& last_error() {
  static thread_local std::string message;
  return message;
}

// Runs `operation`, whose result becomes the caller's. An exception must not cross into C.
template <class Operation>
AOTITorchError return_to_c(AtenTensorHandle* result, Operation operation) noexcept {
  try {
    const Tensor value = operation();
    return aoti_torch_new_tensor_handle(value.get(), result);
  } catch (const std::exception& error) {
    last_error() = error.what();
    return AOTI_TORCH_FAILURE;
  }
}

}  // namespace engine

#define ENGINE_EXPORT extern "C" __attribute__((visibility("default"))) AOTITorchError
