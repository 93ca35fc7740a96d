// Formats that --quantize makes: a scale and a minimum for 64 weights.
#include "linear_quantized.h"

#define FORMATS(USE) USE(i4_g64, I_G64<4>) USE(i5_g64, I_G64<5>) USE(i6_g64, I_G64<6>)
ENGINE_BLOCK_FORMATS(FORMATS)
