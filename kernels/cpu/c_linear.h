// The C functions of the linears and embeddings.
#pragma once

#include "c_interface.h"
#include "epilogue.h"

// kernel: the last part of the operators' names.
#define ENGINE_C_LINEAR(kernel, linear_function, embedding_function)                                                      \
  ENGINE_EXPORT aoti_torch_cpu_linear_##kernel(AtenTensorHandle x, AtenTensorHandle w, AtenTensorHandle* bias,            \
                                               AtenTensorHandle* residual, int64_t out_features, double multiplier, AtenTensorHandle* result) { \
    return engine::return_to_c(result, [&] {                                                                              \
      return linear_function(engine::borrow(x), engine::borrow(w), engine::borrow_optional(bias),                         \
                             engine::borrow_optional(residual), out_features, multiplier);                                            \
    });                                                                                                                   \
  }                                                                                                                       \
  ENGINE_EXPORT aoti_torch_cpu_embedding_##kernel(AtenTensorHandle tokens, AtenTensorHandle w, int64_t dim, double multiplier, \
                                                  AtenTensorHandle* result) {                                             \
    return engine::return_to_c(                                                                                           \
        result, [&] { return embedding_function(engine::borrow(tokens), engine::borrow(w), dim, multiplier); });                      \
  }
