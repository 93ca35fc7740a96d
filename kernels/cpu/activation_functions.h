// The activation functions of feed-forward layers and gates, element by element. NaN stays NaN.
#pragma once

#include "exp.h"

namespace engine {

// x * sigmoid(x), arXiv 1606.08415
struct Silu {
  static ENGINE_INLINE Vf of(Vf x) { return x / (1.0f + exp_clamped(-x)); }
};

struct Sigmoid {
  static ENGINE_INLINE Vf of(Vf x) { return 1.0f / (1.0f + exp_clamped(-x)); }
};

// ln(1 + e^x) = max(x, 0) + ln(1 + t) with t = e^-|x|, and ln(1 + t) = 2 artanh(s) with s = t / (2 + t), at most 1 / 3, by its
// series, whose first left-out term is below 2^-28 of the result.
struct Softplus {
  static ENGINE_INLINE Vf of(Vf x) {
    const Vf t = exp_clamped(x < 0.0f ? x : -x), s = t / (2.0f + t), square = s * s;
    Vf p = splat(1.0f / 15.0f);
    p = fma(p, square, splat(1.0f / 13.0f));
    p = fma(p, square, splat(1.0f / 11.0f));
    p = fma(p, square, splat(1.0f / 9.0f));
    p = fma(p, square, splat(1.0f / 7.0f));
    p = fma(p, square, splat(1.0f / 5.0f));
    p = fma(p, square, splat(1.0f / 3.0f));
    p = fma(p * square, s, s);
    return (x < 0.0f ? splat(0.0f) : x) + (p + p);
  }
};

// x * P(x), P the standard normal distribution function, arXiv 1606.08415. The smaller tail
// Q(a) = P(-|x|) is computed, so that nothing cancels: within 8 units in the last place down to
// x = -13, from where on the result, below 2^-120, is less precise, and 0 below -14; NaN at -infinity.
// Q(a) = e^(-a^2/2) * t * p(t) with t = 4 / (a + 4), and p the polynomial of degree 9 whose largest
// relative error for a up to 14 is smallest (8.1e-9 with exact coefficients). a^2 is squared in two
// parts, since an exponential makes a relative error of an absolute one.
struct Gelu {
  static ENGINE_INLINE Vf of(Vf x) {
    const Vf a = x < 0.0f ? -x : x, t = 4.0f / (a + 4.0f);
    Vf p = splat(0x1.0fa40ep-6f);
    p = fma(p, t, splat(-0x1.013248p-4f));
    p = fma(p, t, splat(0x1.a72254p-5f));
    p = fma(p, t, splat(0x1.d1e67ap-6f));
    p = fma(p, t, splat(0x1.a08622p-7f));
    p = fma(p, t, splat(0x1.62f2bep-4f));
    p = fma(p, t, splat(0x1.26e8aep-4f));
    p = fma(p, t, splat(0x1.873b8ap-4f));
    p = fma(p, t, splat(0x1.978580p-4f));
    p = fma(p, t, splat(0x1.989142p-4f));
    const Vf square = a * a, rest = fma(a, a, -square);
    Vf power = exp_clamped(square * -0.5f);
    power = fma(power, rest * -0.5f, power);
    const Vf far = x < 0.0f ? x * 0.0f : splat(0.0f), tail = a < 14.0f ? a * (power * (t * p)) : far;
    return (x < 0.0f ? splat(0.0f) : x) - tail;
  }
};

// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) = x * sigmoid(sqrt(8 / pi) (x + 0.044715 x^3))
struct GeluTanh {
  static ENGINE_INLINE Vf of(Vf x) {
    const Vf bend = fma(x * x, splat(0.044715f), splat(1.0f));
    return x / (1.0f + exp_clamped(x * -1.5957691216f * bend));
  }
};

// x * sigmoid(1.702 x), arXiv 1606.08415
struct QuickGelu {
  static ENGINE_INLINE Vf of(Vf x) { return x / (1.0f + exp_clamped(x * -1.702f)); }
};

struct Relu {
  static ENGINE_INLINE Vf of(Vf x) { return x < 0.0f ? splat(0.0f) : x; }
};

// relu(x)^2, arXiv 2109.08668
struct Relu2 {
  static ENGINE_INLINE Vf of(Vf x) { return Relu::of(x) * Relu::of(x); }
};

// For x > 0: alpha_p x^2 + beta x; else alpha_n (e^min(x, eps) - 1 - x) + beta x. arXiv 2411.13010
class Xielu {
 public:
  Xielu(float alpha_p, float alpha_n, float beta, float eps) : alpha_p_(alpha_p), alpha_n_(alpha_n), beta_(beta), eps_(eps) {}

  ENGINE_INLINE Vf operator()(Vf x) const {
    const Vf linear = x * beta_, least = x < eps_ ? x : splat(eps_);
    const Vf bent = x > 0.0f ? x * alpha_p_ * x : (expm1(least) - x) * alpha_n_;
    return bent + linear;
  }

 private:
  // e^x - 1 for x <= 0. Near 0 by the series, whose first left-out term is below 2^-25 of the result.
  static ENGINE_INLINE Vf expm1(Vf x) {
    Vf p = splat(0x1.a01a02p-16f);  // 1 / 8!
    p = fma(p, x, splat(0x1.a01a02p-13f));
    p = fma(p, x, splat(0x1.6c16c2p-10f));
    p = fma(p, x, splat(0x1.111112p-7f));
    p = fma(p, x, splat(0x1.555556p-5f));
    p = fma(p, x, splat(0x1.555556p-3f));
    p = fma(p, x, splat(0.5f));
    p = fma(p * x, x, x);
    return x > -0.5f ? p : exp_clamped(x) - 1.0f;
  }

  float alpha_p_, alpha_n_, beta_, eps_;
};

}  // namespace engine
