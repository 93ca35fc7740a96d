// Tokens and their experts, as the operators of mixtures of experts hand them on (moe/reference.py).
#pragma once

#include "op.h"

namespace engine {

// int32 [T, 2, k]: of each token its experts, then their weights' bits.
struct Routes {
  const int32_t* first;
  int64_t tokens, chosen;

  // Raises where an expert is none of `experts`: what follows would read past its arrays.
  Routes(const Tensor& routes, int64_t experts) : first(nullptr), tokens(0), chosen(0) {
    check_contiguous(routes, ScalarType::Int, 3, "routes");
    STD_TORCH_CHECK(routes.size(1) == 2 && routes.size(2) > 0, "routes must be experts and weights");
    first = static_cast<const int32_t*>(routes.data_ptr()), tokens = routes.size(0), chosen = routes.size(2);
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t j = 0; j < chosen; ++j)
        STD_TORCH_CHECK(expert(t)[j] >= 0 && expert(t)[j] < experts, "there is no expert ", expert(t)[j], " of ", experts);
  }
  const int32_t* expert(int64_t token) const { return first + token * 2 * chosen; }
  const float* weight(int64_t token) const { return reinterpret_cast<const float*>(expert(token) + chosen); }
};

// int32 [E + 1 + 2 P], of the P = T * k pairs of `routes`: where the pairs of each expert begin among all of them, sorted by expert, and where
// the last end; the token of each sorted pair; the place of each pair.
struct Pairs {
  const int32_t *begin, *token, *place;
  int64_t tokens, chosen, count, experts;

  Pairs(const Tensor& routes, const Tensor& order) {
    check_contiguous(routes, ScalarType::Int, 3, "routes");
    check_contiguous(order, ScalarType::Int, 1, "order");
    tokens = routes.size(0), chosen = routes.size(2), count = tokens * chosen, experts = order.size(0) - 1 - 2 * count;
    STD_TORCH_CHECK(experts > 0, "order has ", order.size(0), " numbers for ", count, " pairs");
    begin = static_cast<const int32_t*>(order.data_ptr()), token = begin + experts + 1, place = token + count;
    STD_TORCH_CHECK(begin[0] == 0 && begin[experts] == count, "order is not what sort_routes gives");
  }
};

// Where the pairs of each expert begin in `order`, and where the last end, which is at `rows`.
inline const int32_t* begins_of(const Tensor& order, int64_t experts, int64_t rows) {
  check_contiguous(order, ScalarType::Int, 1, "order");
  STD_TORCH_CHECK(experts > 0 && order.size(0) == experts + 1 + 2 * rows, "order has ", order.size(0), " numbers for ", experts, " experts and ", rows, " rows");
  const int32_t* begin = static_cast<const int32_t*>(order.data_ptr());
  STD_TORCH_CHECK(begin[0] == 0 && begin[experts] == rows, "order is not what sort_routes gives");
  for (int64_t e = 0; e < experts; ++e) STD_TORCH_CHECK(begin[e] <= begin[e + 1], "order is not what sort_routes gives");
  return begin;
}

}  // namespace engine
