// What stands between the products of a mixture of experts: route, route_table, sort_routes, equal_order, gather_rows, weigh_rows,
// combine_experts. moe/reference.py says what each computes.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string_view>
#include <vector>

#include "c_interface.h"
#include "exp.h"
#include "moe.h"
#include "residual.h"
#include "rows.h"

namespace engine {
namespace {

enum class Score { kIdentity, kSoftmax, kSigmoid, kSqrtSoftplus };

Score score_of(std::string_view name) {
  if (name == "identity" || name == "scores") return Score::kIdentity;
  if (name == "softmax") return Score::kSoftmax;
  if (name == "sigmoid") return Score::kSigmoid;
  if (name == "sqrt_softplus") return Score::kSqrtSoftplus;
  STD_TORCH_CHECK(false, "no router scores by ", std::string(name));
}

// As kernels/moe/options.py has it.
struct RouteOptions {
  int64_t chosen;
  Score score;
  int64_t groups, kept, best;
  bool zero_outside;
  Score weighting;
  bool normalized;
  float eps, least, scale;
  int64_t shared;
};

// Of `count` numbers, in place. Sums are in the order of the numbers, which is the same whatever the vectors' width.
void apply(Score score, float* values, int64_t count) {
  if (score == Score::kIdentity) return;
  if (score == Score::kSqrtSoftplus) {
    for (int64_t i = 0; i < count; ++i) values[i] = std::sqrt(std::max(values[i], 0.0f) + std::log1p(std::exp(-std::abs(values[i]))));
    return;
  }
  const float shift = score == Score::kSoftmax ? *std::max_element(values, values + count) : 0.0f;
  float padded[kLanes];
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t left = std::min<int64_t>(kLanes, count - i);
    std::fill_n(padded, kLanes, 0.0f);
    std::copy_n(values + i, left, padded);
    const Vf x = load(padded);
    store(padded, score == Score::kSoftmax ? exp_clamped(x - shift) : 1.0f / (1.0f + exp_clamped(-x)));
    std::copy_n(padded, left, values + i);
  }
  if (score == Score::kSigmoid) return;
  const float sum = std::accumulate(values, values + count, 0.0f);
  for (int64_t i = 0; i < count; ++i) values[i] /= sum;
}

// The place of the largest, the lowest of equals. What is no number is smaller than all that are.
int64_t largest(const float* values, int64_t count) {
  int64_t place = 0;
  for (int64_t i = 1; i < count; ++i)
    if (values[i] > values[place] || (std::isnan(values[place]) && !std::isnan(values[i]))) place = i;
  return place;
}

// Of a thread, so that a row allocates nothing.
struct RouteScratch {
  std::vector<float> scores, choice, groups;
  std::vector<bool> taken, kept;
};

// Choices outside the best groups become what the options say.
void mask(const RouteOptions& options, float* choice, int64_t experts, RouteScratch& scratch) {
  const int64_t size = experts / options.groups;
  scratch.groups.resize(size_t(options.groups + size));
  float *sums = scratch.groups.data(), *members = sums + options.groups;
  for (int64_t g = 0; g < options.groups; ++g) {
    std::copy_n(choice + g * size, size, members);
    float sum = 0;
    for (int64_t i = 0; i < options.best; ++i) {
      const int64_t place = largest(members, size);
      sum = i == 0 ? members[place] : sum + members[place];
      members[place] = -INFINITY;
    }
    sums[g] = sum;
  }
  std::vector<bool>& kept = scratch.kept;
  kept.assign(size_t(options.groups), false);
  for (int64_t i = 0; i < options.kept; ++i) {
    int64_t best = -1;
    for (int64_t g = 0; g < options.groups; ++g)
      if (!kept[size_t(g)] && (best < 0 || sums[g] > sums[best])) best = g;
    kept[size_t(best)] = true;
  }
  for (int64_t g = 0; g < options.groups; ++g)
    if (!kept[size_t(g)]) std::fill_n(choice + g * size, size, options.zero_outside ? 0.0f : -INFINITY);
}

void route_row(const RouteOptions& options, const float* logits, const float* choice_bias, const float* expert_scale, int64_t experts,
               RouteScratch& scratch, int32_t* ids, float* weights) {
  scratch.scores.assign(logits, logits + experts);
  float* scores = scratch.scores.data();
  apply(options.score, scores, experts);
  scratch.choice = scratch.scores;
  float* choice = scratch.choice.data();
  if (choice_bias != nullptr)
    for (int64_t e = 0; e < experts; ++e) choice[e] += choice_bias[e];
  if (options.groups > 1) mask(options, choice, experts, scratch);
  scratch.taken.assign(size_t(experts), false);
  for (int64_t j = 0; j < options.chosen; ++j) {
    int64_t best = -1;  // the first that is left, where none is a number
    for (int64_t e = 0; e < experts; ++e)
      if (!scratch.taken[size_t(e)] && (best < 0 || choice[e] > choice[best] || (std::isnan(choice[best]) && !std::isnan(choice[e])))) best = e;
    scratch.taken[size_t(best)] = true;
    ids[j] = int32_t(best);
    weights[j] = scores[best];
  }
  apply(options.weighting, weights, options.chosen);
  if (options.normalized) {
    const float sum = std::max(std::accumulate(weights + 1, weights + options.chosen, weights[0]) + options.eps, options.least);
    for (int64_t j = 0; j < options.chosen; ++j) weights[j] /= sum;
  }
  for (int64_t j = 0; j < options.chosen; ++j) {
    weights[j] *= options.scale;
    if (expert_scale != nullptr) weights[j] *= expert_scale[ids[j]];
  }
  for (int64_t j = 0; j < options.shared; ++j) {
    ids[options.chosen + j] = int32_t(experts + j);
    weights[options.chosen + j] = 1.0f;
  }
}

Tensor empty_ints(std::initializer_list<int64_t> sizes) { return empty_tensor(sizes, aoti_torch_dtype_int32(), 4); }

Tensor route(Tensor logits, std::optional<Tensor> choice_bias, std::optional<Tensor> expert_scale, const RouteOptions& options) {
  check_rows(logits, ScalarType::Float, 2, "logits");
  const int64_t tokens = logits.size(0), experts = logits.size(1);
  STD_TORCH_CHECK(options.chosen > 0 && options.chosen <= experts, options.chosen, " of ", experts, " experts cannot be chosen");
  STD_TORCH_CHECK(options.shared >= 0, options.shared, " experts cannot be shared");
  STD_TORCH_CHECK(options.groups > 0 && experts % options.groups == 0 && options.kept > 0 && options.kept <= options.groups &&
                      options.best > 0 && options.best <= experts / options.groups,
                  experts, " experts cannot be in ", options.groups, " groups");
  const float* bias = vector_of(choice_bias, experts, "choice_bias");
  const float* scales = vector_of(expert_scale, experts, "expert_scale");
  const int64_t each = options.chosen + options.shared;
  Tensor routes = empty_ints({tokens, 2, each});
  int32_t* to = static_cast<int32_t*>(routes.data_ptr());
  const float* from = data<float>(logits);
  const int64_t stride = row_stride(logits);
  parallel_for(tokens, 4, threads_for(tokens * experts * 16), [&](int64_t begin, int64_t end) {
    static thread_local RouteScratch scratch;
    for (int64_t t = begin; t < end; ++t) {
      int32_t* ids = to + t * 2 * each;
      route_row(options, from + t * stride, bias, scales, experts, scratch, ids, reinterpret_cast<float*>(ids + each));
    }
  });
  return routes;
}

Tensor route_of_numbers(Tensor logits, std::optional<Tensor> choice_bias, std::optional<Tensor> expert_scale, int64_t chosen, std::string score,
                        int64_t groups, int64_t kept, int64_t best, bool zero_outside, std::string weighting, bool normalized, double eps,
                        double least, double scale, int64_t shared) {
  return route(logits, choice_bias, expert_scale,
               {chosen, score_of(score), groups, kept, best, zero_outside, score_of(weighting), normalized, float(eps), float(least), float(scale), shared});
}

Tensor route_table(Tensor routes, int64_t experts) {
  const Routes given(routes, experts);
  Tensor table = empty_floats({given.tokens, experts});
  float* to = static_cast<float*>(table.data_ptr());
  std::fill_n(to, given.tokens * experts, 0.0f);
  for (int64_t t = 0; t < given.tokens; ++t)
    for (int64_t j = 0; j < given.chosen; ++j) to[t * experts + given.expert(t)[j]] = given.weight(t)[j];
  return table;
}

Tensor sort_routes(Tensor routes, int64_t experts) {
  const Routes given(routes, experts);
  const int64_t pairs = given.tokens * given.chosen;
  Tensor order = empty_ints({experts + 1 + 2 * pairs});
  int32_t *begins = static_cast<int32_t*>(order.data_ptr()), *tokens = begins + experts + 1, *places = tokens + pairs;
  std::fill_n(begins, experts + 1, 0);
  for (int64_t t = 0; t < given.tokens; ++t)
    for (int64_t j = 0; j < given.chosen; ++j) ++begins[given.expert(t)[j] + 1];
  for (int64_t e = 0; e < experts; ++e) begins[e + 1] += begins[e];
  std::vector<int32_t> next(begins, begins + experts);
  for (int64_t t = 0; t < given.tokens; ++t)
    for (int64_t j = 0; j < given.chosen; ++j) {
      const int32_t place = next[size_t(given.expert(t)[j])]++;
      tokens[place] = int32_t(t);
      places[t * given.chosen + j] = place;
    }
  return order;
}

Tensor equal_order(Tensor x, int64_t experts) {
  STD_TORCH_CHECK(x.dim() >= 1 && experts > 0 && x.size(0) % experts == 0, "x has not as many rows of each of ", experts, " experts");
  const int64_t rows = x.size(0);
  Tensor order = empty_ints({experts + 1 + 2 * rows});
  int32_t *begins = static_cast<int32_t*>(order.data_ptr()), *tokens = begins + experts + 1, *places = tokens + rows;
  for (int64_t e = 0; e <= experts; ++e) begins[e] = int32_t(e * (rows / experts));
  std::iota(tokens, tokens + rows, 0);
  std::iota(places, places + rows, 0);
  return order;
}

Tensor gather_rows(Tensor x, Tensor routes, Tensor order) {
  const Pairs pairs(routes, order);
  STD_TORCH_CHECK(x.is_cpu() && x.is_contiguous() && x.dim() >= 2 && x.dim() <= 3, "x must be contiguous rows on the CPU");
  STD_TORCH_CHECK(x.size(0) == pairs.tokens, "x has ", x.size(0), " rows for ", pairs.tokens, " tokens");
  const ScalarType type = x.scalar_type();
  const int64_t size = type == ScalarType::Float ? 4 : type == ScalarType::BFloat16 ? 2 : 1;
  STD_TORCH_CHECK(size > 1 || type == ScalarType::Byte, "x must be float32, bfloat16 or bytes");
  const int32_t dtype = size == 4 ? aoti_torch_dtype_float32() : size == 2 ? aoti_torch_dtype_bfloat16() : aoti_torch_dtype_uint8();
  int64_t elements = 1;
  for (int64_t i = 1; i < x.dim(); ++i) elements *= x.size(i);
  Tensor out = x.dim() == 2 ? empty_tensor({pairs.count, x.size(1)}, dtype, size) : empty_tensor({pairs.count, x.size(1), x.size(2)}, dtype, size);
  const char* from = static_cast<const char*>(x.data_ptr());
  char* to = static_cast<char*>(out.data_ptr());
  const int64_t bytes = elements * size;
  parallel_for(pairs.count, 8, threads_for(pairs.count * bytes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::memcpy(to + i * bytes, from + pairs.token[i] * bytes, size_t(bytes));
  });
  return out;
}

Tensor weigh_rows(Tensor x, Tensor routes, Tensor order) {
  const Pairs pairs(routes, order);
  const Rows rows(x, "x");
  STD_TORCH_CHECK(rows.count == pairs.tokens, "x has ", rows.count, " rows for ", pairs.tokens, " tokens");
  Tensor out = FloatRows::empty(pairs.count, rows.features);
  const FloatRows sink(out, rows.features);
  const Routes given(routes, pairs.experts);
  parallel_for(pairs.tokens, 1, threads_for(pairs.count * rows.features), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t j = 0; j < pairs.chosen; ++j) {
        const float weight = given.weight(t)[j];
        sink.write(pairs.place[t * pairs.chosen + j], 0, rows.features, [&](int64_t k) {
          GroupValues values = rows.group(t, k);
          each_vector(values, [&](Vf value, int) { return value * weight; });
          return values;
        });
      }
  });
  return out;
}

Tensor combine_experts(Tensor y, Tensor routes, Tensor order, std::optional<Tensor> shared, std::optional<Tensor> gate, std::optional<Tensor> residual,
                       double multiplier, bool weighted) {
  const Pairs pairs(routes, order);
  const Rows rows(y, "y");
  STD_TORCH_CHECK(rows.count == pairs.count, "y has ", rows.count, " rows for ", pairs.count, " pairs");
  const int64_t tokens = pairs.tokens, chosen = pairs.chosen, features = rows.features;
  const Residual beside(shared, tokens, features), after(residual, tokens, features);
  const Residual factors(gate, tokens, 1);
  STD_TORCH_CHECK(!factors || beside, "a gate needs something that it multiplies");
  const float factor = float(multiplier);
  Tensor out = FloatRows::empty(tokens, features);
  const FloatRows sink(out, features);
  const Routes given(routes, pairs.experts);
  parallel_for(tokens, 1, threads_for(tokens * chosen * features), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int32_t* place = pairs.place + t * chosen;
      auto weight = [&](int64_t j) { return weighted ? given.weight(t)[j] : 1.0f; };
      sink.write(t, 0, features, [&](int64_t k) {
        GroupValues sum = rows.group(place[0], k);
        each_vector(sum, [&](Vf value, int) { return value * weight(0); });
        for (int64_t j = 1; j < chosen; ++j) {
          const GroupValues term = rows.group(place[j], k);
          each_vector(sum, [&](Vf value, int v) { return value + term.part[v] * weight(j); });
        }
        if (beside) {
          const GroupValues term = load_group(beside.row(t), k, features);
          if (factors) each_vector(sum, [&](Vf value, int v) { return value + term.part[v] * factors.row(t)[0]; });
          else each_vector(sum, [&](Vf value, int v) { return value + term.part[v]; });
        }
        if (factor != 1.0f) each_vector(sum, [&](Vf value, int) { return value * factor; });
        if (after) {
          const GroupValues term = load_group(after.row(t), k, features);
          each_vector(sum, [&](Vf value, int v) { return value + term.part[v]; });
        }
        return sum;
      });
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(engine, CPU, m) {
  m.impl("route", TORCH_BOX(&route_of_numbers));
  m.impl("route_table", TORCH_BOX(&route_table));
  m.impl("sort_routes", TORCH_BOX(&sort_routes));
  m.impl("equal_order", TORCH_BOX(&equal_order));
  m.impl("gather_rows", TORCH_BOX(&gather_rows));
  m.impl("weigh_rows", TORCH_BOX(&weigh_rows));
  m.impl("combine_experts", TORCH_BOX(&combine_experts));
}

}  // namespace engine

ENGINE_EXPORT aoti_torch_cpu_route(AtenTensorHandle logits, AtenTensorHandle* choice_bias, AtenTensorHandle* expert_scale, int64_t chosen,
                                   const char* score, int64_t groups, int64_t kept, int64_t best, int32_t zero_outside, const char* weighting,
                                   int32_t normalized, double eps, double least, double scale, int64_t shared, AtenTensorHandle* result) {
  return engine::return_to_c(result, [&] {
    return engine::route(engine::borrow(logits), engine::borrow_optional(choice_bias), engine::borrow_optional(expert_scale),
                         {chosen, engine::score_of(score), groups, kept, best, zero_outside != 0, engine::score_of(weighting), normalized != 0,
                          float(eps), float(least), float(scale), shared});
  });
}
ENGINE_EXPORT aoti_torch_cpu_route_table(AtenTensorHandle routes, int64_t experts, AtenTensorHandle* result) {
  return engine::return_to_c(result, [&] { return engine::route_table(engine::borrow(routes), experts); });
}
ENGINE_EXPORT aoti_torch_cpu_sort_routes(AtenTensorHandle routes, int64_t experts, AtenTensorHandle* result) {
  return engine::return_to_c(result, [&] { return engine::sort_routes(engine::borrow(routes), experts); });
}
ENGINE_EXPORT aoti_torch_cpu_equal_order(AtenTensorHandle x, int64_t experts, AtenTensorHandle* result) {
  return engine::return_to_c(result, [&] { return engine::equal_order(engine::borrow(x), experts); });
}
ENGINE_EXPORT aoti_torch_cpu_gather_rows(AtenTensorHandle x, AtenTensorHandle routes, AtenTensorHandle order, AtenTensorHandle* result) {
  return engine::return_to_c(result, [&] { return engine::gather_rows(engine::borrow(x), engine::borrow(routes), engine::borrow(order)); });
}
ENGINE_EXPORT aoti_torch_cpu_weigh_rows(AtenTensorHandle x, AtenTensorHandle routes, AtenTensorHandle order, AtenTensorHandle* result) {
  return engine::return_to_c(result, [&] { return engine::weigh_rows(engine::borrow(x), engine::borrow(routes), engine::borrow(order)); });
}
ENGINE_EXPORT aoti_torch_cpu_combine_experts(AtenTensorHandle y, AtenTensorHandle routes, AtenTensorHandle order, AtenTensorHandle* shared,
                                             AtenTensorHandle* gate, AtenTensorHandle* residual, double multiplier, int32_t weighted,
                                             AtenTensorHandle* result) {
  return engine::return_to_c(result, [&] {
    return engine::combine_experts(engine::borrow(y), engine::borrow(routes), engine::borrow(order), engine::borrow_optional(shared),
                                   engine::borrow_optional(gate), engine::borrow_optional(residual), multiplier, weighted != 0);
  });
}
