// The operators that stand between segments, callable by name in one way: tensors, of which the
// last may be absent, then numbers.
#pragma once

#include <span>
#include <string_view>

#include "c_interface.h"

namespace engine {

using CutOperator = AOTITorchError (*)(std::span<const AtenTensorHandle> inputs, const double* scalars, AtenTensorHandle* outputs);

// Null if there is none of this name.
CutOperator cut_operator(std::string_view name);

}  // namespace engine
