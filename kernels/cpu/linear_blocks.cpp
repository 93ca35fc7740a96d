// Formats whose groups have one scale each.
#include "linear_quantized.h"

#define FORMATS(USE) USE(q8_0, Q8_0) USE(q4_0, Q4_0) USE(q4_1, Q4_1) USE(q5_0, Q5_0) USE(q5_1, Q5_1)
ENGINE_BLOCK_FORMATS(FORMATS)
