// The operators that stand between segments, callable by name in one way: tensors, then numbers.
#pragma once

#include <string_view>

#include "c_interface.h"

namespace engine {

using CutOperator = AOTITorchError (*)(const AtenTensorHandle* inputs, const double* scalars, AtenTensorHandle* outputs);

// Null if there is none of this name.
CutOperator cut_operator(std::string_view name);

}  // namespace engine
