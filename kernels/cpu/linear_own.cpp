// Formats that --quantize makes: a scale and a minimum for each row, and integers of eight bits that divide them for 32 weights.
#include "linear_quantized.h"

#define FORMATS(USE) USE(i4_g32, I_G32<4>) USE(i5_g32, I_G32<5>) USE(i6_g32, I_G32<6>)
ENGINE_BLOCK_FORMATS(FORMATS)
