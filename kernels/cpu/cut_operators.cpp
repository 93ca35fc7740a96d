#include "cut_operators.h"

#include <array>
#include <utility>

#include "attention_operator.h"

namespace engine {
namespace {

// Numbers of an attention operator: scale, window, soft cap, and eps with a norm.
template <bool Norm, bool Rope>
AOTITorchError attention(std::span<const AtenTensorHandle> in, const double* scalars, AtenTensorHandle* out) {
  return return_to_c(out, [&] { return attend({Norm, Rope}, in, {scalars[0], int64_t(scalars[1]), scalars[2], Norm ? scalars[3] : 0.0}); });
}

constexpr std::array<std::pair<std::string_view, CutOperator>, 4> kOperators = {{
    {"engine.paged_attention", &attention<false, false>},
    {"engine.rope_paged_attention", &attention<false, true>},
    {"engine.norm_paged_attention", &attention<true, false>},
    {"engine.norm_rope_paged_attention", &attention<true, true>},
}};

}  // namespace

CutOperator cut_operator(std::string_view name) {
  for (const auto& [known, function] : kOperators)
    if (known == name) return function;
  return nullptr;
}

}  // namespace engine
