#include "linear_quantized.h"

ENGINE_BLOCK_FORMATS(ENGINE_ZERO_POINTS)
