// Formats whose blocks have zero points: what GPTQ, AWQ and compressed-tensors publish.
#include "linear_quantized.h"

#define FORMATS(USE) \
  USE(w4_g32, W4<32>) USE(w4_g64, W4<64>) USE(w4_g128, W4<128>) USE(w8_g32, W8<32>) USE(w8_g64, W8<64>) USE(w8_g128, W8<128>)
ENGINE_BLOCK_FORMATS(FORMATS)
