// The activation operators: a function of every element, alone or times another matrix (a gate) or a number.
// Float32 results or, with _quantize, _quantize_rows and _round_bf16, what that makes of them for the linear that follows.

#include "activation_functions.h"

#include "c_interface.h"
#include "rows.h"
#include "soft_cap.h"

namespace engine {
namespace {

template <class Sink, class Function>
Tensor map_function(const Tensor& x, const Function& function) {
  const Rows rows(x, "x");
  return map_elements<Sink>(rows, [&](int64_t row) {
    return [&, row](int64_t k) {
      GroupValues values = rows.group(row, k);
      each_vector(values, [&](Vf value, int) { return function(value); });
      return values;
    };
  });
}

template <class Function, class Sink>
Tensor activate(Tensor x) {
  return map_function<Sink>(x, [](Vf value) { return Function::of(value); });
}

template <class Function, class Sink>
Tensor activate_mul(Tensor gate, Tensor up) {
  const Rows gates(gate, "gate"), ups(up, "up");
  STD_TORCH_CHECK(gates.count == ups.count && gates.features == ups.features, "gate and up differ in shape");
  return map_elements<Sink>(gates, [&](int64_t row) {
    return [&, row](int64_t k) {
      GroupValues values = gates.group(row, k);
      const GroupValues factors = ups.group(row, k);
      each_vector(values, [&](Vf value, int v) { return Function::of(value) * factors.part[v]; });
      return values;
    };
  });
}

ENGINE_INLINE Vf clipped(Vf value, float limit) {
  const Vf most = splat(limit), least = splat(-limit);
  return value > most ? most : value < least ? least : value;
}

// Function(min(gate, limit)) * (up, at least -limit and at most limit, + plus).
template <class Function>
Tensor activate_mul_clamped(Tensor gate, Tensor up, double limit, double plus) {
  const Rows gates(gate, "gate"), ups(up, "up");
  STD_TORCH_CHECK(gates.count == ups.count && gates.features == ups.features, "gate and up differ in shape");
  STD_TORCH_CHECK(limit > 0, "limit must be positive");
  const float most = float(limit), more = float(plus);
  return map_elements<FloatRows>(gates, [&](int64_t row) {
    return [&, row](int64_t k) {
      GroupValues values = gates.group(row, k);
      const GroupValues factors = ups.group(row, k);
      each_vector(values, [&](Vf value, int v) { return Function::of(value > most ? splat(most) : value) * (clipped(factors.part[v], most) + more); });
      return values;
    };
  });
}

template <class Sink>
Tensor xielu(Tensor x, Tensor alpha_p, Tensor alpha_n, Tensor beta, Tensor eps) {
  const Xielu function(scalar_of(alpha_p, "alpha_p"), scalar_of(alpha_n, "alpha_n"), scalar_of(beta, "beta"), scalar_of(eps, "eps"));
  return map_function<Sink>(x, function);
}

Tensor soft_cap(Tensor x, double cap) {
  STD_TORCH_CHECK(cap > 0, "cap must be positive");
  return map_function<FloatRows>(x, SoftCap(float(cap)));
}

Tensor clip(Tensor x, double limit) {
  STD_TORCH_CHECK(limit > 0, "limit must be positive");
  return map_function<FloatRows>(x, [=](Vf value) { return clipped(value, float(limit)); });
}

Tensor scale(Tensor x, Tensor factor) {
  const float by = scalar_of(factor, "factor");
  return map_function<FloatRows>(x, [=](Vf value) { return value * by; });
}

}  // namespace

#define ENGINE_ACTIVATION_INTO(name, suffix, Function, Sink)               \
  m.impl(#name suffix, TORCH_BOX((&activate<Function, Sink>)));            \
  m.impl(#name "_mul" suffix, TORCH_BOX((&activate_mul<Function, Sink>)))
#define ENGINE_ACTIVATION(name, Function)                                  \
  ENGINE_ACTIVATION_INTO(name, "", Function, FloatRows);                   \
  ENGINE_ACTIVATION_INTO(name, "_quantize", Function, QuantizedRows);      \
  ENGINE_ACTIVATION_INTO(name, "_quantize_rows", Function, QuantizedWholeRows); \
  ENGINE_ACTIVATION_INTO(name, "_round_bf16", Function, BFloat16Rows)

STABLE_TORCH_LIBRARY_IMPL(engine, CPU, m) {
  ENGINE_ACTIVATION(silu, Silu);
  ENGINE_ACTIVATION(sigmoid, Sigmoid);
  ENGINE_ACTIVATION(softplus, Softplus);
  ENGINE_ACTIVATION(gelu, Gelu);
  ENGINE_ACTIVATION(gelu_tanh, GeluTanh);
  ENGINE_ACTIVATION(quick_gelu, QuickGelu);
  ENGINE_ACTIVATION(relu, Relu);
  ENGINE_ACTIVATION(relu2, Relu2);
  m.impl("silu_mul_clamped", TORCH_BOX(&activate_mul_clamped<Silu>));
  m.impl("quick_gelu_mul_clamped", TORCH_BOX(&activate_mul_clamped<QuickGelu>));
  m.impl("xielu", TORCH_BOX(&xielu<FloatRows>));
  m.impl("xielu_quantize", TORCH_BOX(&xielu<QuantizedRows>));
  m.impl("xielu_quantize_rows", TORCH_BOX(&xielu<QuantizedWholeRows>));
  m.impl("xielu_round_bf16", TORCH_BOX(&xielu<BFloat16Rows>));
  m.impl("soft_cap", TORCH_BOX(&soft_cap));
  m.impl("clip", TORCH_BOX(&clip));
  m.impl("scale", TORCH_BOX(&scale));
}

}  // namespace engine

#define ENGINE_C_FUNCTION(name, Function, Sink)                                                                        \
  ENGINE_EXPORT aoti_torch_cpu_##name(AtenTensorHandle x, AtenTensorHandle* result) {                                  \
    return engine::return_to_c(result, [&] { return engine::activate<engine::Function, engine::Sink>(engine::borrow(x)); }); \
  }
#define ENGINE_C_GATE(name, Function, Sink)                                                                            \
  ENGINE_EXPORT aoti_torch_cpu_##name(AtenTensorHandle gate, AtenTensorHandle up, AtenTensorHandle* result) {          \
    return engine::return_to_c(                                                                                        \
        result, [&] { return engine::activate_mul<engine::Function, engine::Sink>(engine::borrow(gate), engine::borrow(up)); }); \
  }
#define ENGINE_C_ACTIVATION(name, Function)                    \
  ENGINE_C_FUNCTION(name, Function, FloatRows)                 \
  ENGINE_C_FUNCTION(name##_quantize, Function, QuantizedRows)  \
  ENGINE_C_FUNCTION(name##_quantize_rows, Function, QuantizedWholeRows) \
  ENGINE_C_FUNCTION(name##_round_bf16, Function, BFloat16Rows) \
  ENGINE_C_GATE(name##_mul, Function, FloatRows)               \
  ENGINE_C_GATE(name##_mul_quantize, Function, QuantizedRows)  \
  ENGINE_C_GATE(name##_mul_quantize_rows, Function, QuantizedWholeRows) \
  ENGINE_C_GATE(name##_mul_round_bf16, Function, BFloat16Rows)
ENGINE_C_ACTIVATION(silu, Silu)
ENGINE_C_ACTIVATION(sigmoid, Sigmoid)
ENGINE_C_ACTIVATION(softplus, Softplus)
ENGINE_C_ACTIVATION(gelu, Gelu)
ENGINE_C_ACTIVATION(gelu_tanh, GeluTanh)
ENGINE_C_ACTIVATION(quick_gelu, QuickGelu)
ENGINE_C_ACTIVATION(relu, Relu)
ENGINE_C_ACTIVATION(relu2, Relu2)

#define ENGINE_C_CLAMPED(name, Function)                                                                                                   \
  ENGINE_EXPORT aoti_torch_cpu_##name##_mul_clamped(AtenTensorHandle gate, AtenTensorHandle up, double limit, double plus,                  \
                                                    AtenTensorHandle* result) {                                                            \
    return engine::return_to_c(                                                                                                            \
        result, [&] { return engine::activate_mul_clamped<engine::Function>(engine::borrow(gate), engine::borrow(up), limit, plus); });    \
  }
ENGINE_C_CLAMPED(silu, Silu)
ENGINE_C_CLAMPED(quick_gelu, QuickGelu)

#define ENGINE_C_XIELU(name, Sink)                                                                                      \
  ENGINE_EXPORT aoti_torch_cpu_##name(AtenTensorHandle x, AtenTensorHandle alpha_p, AtenTensorHandle alpha_n,           \
                                      AtenTensorHandle beta, AtenTensorHandle eps, AtenTensorHandle* result) {          \
    return engine::return_to_c(result, [&] {                                                                            \
      return engine::xielu<engine::Sink>(engine::borrow(x), engine::borrow(alpha_p), engine::borrow(alpha_n),           \
                                         engine::borrow(beta), engine::borrow(eps));                                    \
    });                                                                                                                 \
  }
ENGINE_C_XIELU(xielu, FloatRows)
ENGINE_C_XIELU(xielu_quantize, QuantizedRows)
ENGINE_C_XIELU(xielu_quantize_rows, QuantizedWholeRows)
ENGINE_C_XIELU(xielu_round_bf16, BFloat16Rows)

ENGINE_EXPORT aoti_torch_cpu_soft_cap(AtenTensorHandle x, double cap, AtenTensorHandle* result) {
  return engine::return_to_c(result, [&] { return engine::soft_cap(engine::borrow(x), cap); });
}

ENGINE_EXPORT aoti_torch_cpu_clip(AtenTensorHandle x, double limit, AtenTensorHandle* result) {
  return engine::return_to_c(result, [&] { return engine::clip(engine::borrow(x), limit); });
}

ENGINE_EXPORT aoti_torch_cpu_scale(AtenTensorHandle x, AtenTensorHandle factor, AtenTensorHandle* result) {
  return engine::return_to_c(result, [&] { return engine::scale(engine::borrow(x), engine::borrow(factor)); });
}
