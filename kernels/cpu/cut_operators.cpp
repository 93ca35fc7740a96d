#include "cut_operators.h"

#include <utility>

#include "attention_operator.h"

namespace engine {
namespace {

AOTITorchError attention(std::span<const AtenTensorHandle> in, const double* scalars, AtenTensorHandle* out) {
  const AttentionTensors tensors{in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7], in[8], in[9], in[10], in[11], in[12], in[13], in[14]};
  const AttentionOptions options{scalars[0], int64_t(scalars[1]), int64_t(scalars[2]), scalars[3], scalars[4], scalars[5] != 0};
  return return_to_c(out, [&] { return attend(tensors, options); });
}

constexpr std::pair<std::string_view, CutOperator> kOperators[] = {{"engine.attention", &attention}};

}  // namespace

CutOperator cut_operator(std::string_view name) {
  for (const auto& [known, function] : kOperators)
    if (known == name) return function;
  return nullptr;
}

}  // namespace engine
