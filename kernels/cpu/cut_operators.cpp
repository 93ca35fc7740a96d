#include "cut_operators.h"

extern "C" AOTITorchError aoti_torch_cpu_paged_attention(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle,
                                                         AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, double, int64_t,
                                                         AtenTensorHandle*);

namespace engine {
namespace {

AOTITorchError paged_attention(const AtenTensorHandle* in, const double* scalars, AtenTensorHandle* out) {
  return aoti_torch_cpu_paged_attention(in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7], in[8], scalars[0], int64_t(scalars[1]), out);
}

}  // namespace

CutOperator cut_operator(std::string_view name) { return name == "engine.paged_attention" ? &paged_attention : nullptr; }

}  // namespace engine
