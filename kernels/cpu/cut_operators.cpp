#include "cut_operators.h"

#include <utility>

#include "attention_operator.h"
#include "mean_pool.h"

namespace engine {
namespace {

AttentionOptions options_of(const double* scalars) {
  return {scalars[0], int64_t(scalars[1]), int64_t(scalars[2]), scalars[3], scalars[4], scalars[5] != 0};
}

AOTITorchError attention(std::span<const AtenTensorHandle> in, const double* scalars, AtenTensorHandle* out) {
  const AttentionTensors tensors{in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7], in[8], in[9], in[10], in[11], in[12], in[13], in[14]};
  return return_to_c(out, [&] { return attend(tensors, options_of(scalars)); });
}

AOTITorchError bidirectional_attention(std::span<const AtenTensorHandle> in, const double* scalars, AtenTensorHandle* out) {
  const BidirectionalTensors tensors{in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7], in[8], in[9]};
  return return_to_c(out, [&] { return attend_bidirectional(tensors, options_of(scalars)); });
}

AOTITorchError latent_attention(std::span<const AtenTensorHandle> in, const double* scalars, AtenTensorHandle* out) {
  return return_to_c(out, [&] { return attend_latent({in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7]}, scalars[0]); });
}

AOTITorchError mean_pool(std::span<const AtenTensorHandle> in, const double*, AtenTensorHandle* out) {
  return return_to_c(out, [&] { return mean_of_rows(borrow(in[0]), borrow(in[1]), borrow(in[2])); });
}

constexpr std::pair<std::string_view, CutOperator> kOperators[] = {{"engine.attention", &attention},
                                                                   {"engine.bidirectional_attention", &bidirectional_attention},
                                                                   {"engine.latent_attention", &latent_attention},
                                                                   {"engine.mean_pool", &mean_pool}};

}  // namespace

CutOperator cut_operator(std::string_view name) {
  for (const auto& [known, function] : kOperators)
    if (known == name) return function;
  return nullptr;
}

}  // namespace engine
