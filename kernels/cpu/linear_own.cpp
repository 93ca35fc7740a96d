#include "linear_quantized.h"

ENGINE_BLOCK_FORMATS(ENGINE_OWN)
