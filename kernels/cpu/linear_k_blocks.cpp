// Formats of two levels: blocks of 256 with integer scales.
#include "linear_quantized.h"

#define FORMATS(USE) USE(q2_k, Q2_K) USE(q3_k, Q3_K) USE(q4_k, Q4_K) USE(q5_k, Q5_K) USE(q6_k, Q6_K)
ENGINE_BLOCK_FORMATS(FORMATS)
