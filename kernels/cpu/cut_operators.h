// The operators that stand between segments (kernels/cut_operators.py), callable by name in one way:
// tensors, null where an optional one is absent, then scalars. Whoever calls has counted both.
#pragma once

#include <span>
#include <string_view>

#include "c_interface.h"

namespace engine {

using CutOperator = AOTITorchError (*)(std::span<const AtenTensorHandle> inputs, const double* scalars, AtenTensorHandle* outputs);

// Null if there is none of this name.
CutOperator cut_operator(std::string_view name);

}  // namespace engine
