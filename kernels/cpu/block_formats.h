// The quantized formats: the last part of their operators' names, and their types in weight_formats.h.
#pragma once

// Groups have one scale each.
#define ENGINE_BLOCKS(USE) USE(q8_0, Q8_0) USE(q4_0, Q4_0) USE(q4_1, Q4_1) USE(q5_0, Q5_0) USE(q5_1, Q5_1)
// Two levels: blocks of 256 with integer scales.
#define ENGINE_K_BLOCKS(USE) USE(q2_k, Q2_K) USE(q3_k, Q3_K) USE(q4_k, Q4_K) USE(q5_k, Q5_K) USE(q6_k, Q6_K)
// Codes stand for the values of a table.
#define ENGINE_TABLES(USE) USE(iq4_nl, Iq4_Nl) USE(iq4_xs, Iq4_Xs) USE(mxfp4, Mxfp4) USE(nvfp4_mul, Nvfp4_Mul) USE(nvfp4_div, Nvfp4_Div)
// Blocks have zero points: what GPTQ, AWQ and compressed-tensors publish.
#define ENGINE_ZERO_POINTS(USE) \
  USE(w4_g32, W4<32>) USE(w4_g64, W4<64>) USE(w4_g128, W4<128>) USE(w8_g32, W8<32>) USE(w8_g64, W8<64>) USE(w8_g128, W8<128>)
// What --quantize makes: a scale and a minimum for each row, and integers of eight bits that divide them for 32 weights.
#define ENGINE_OWN(USE) USE(i4_g32, I_G32<4>) USE(i5_g32, I_G32<5>) USE(i6_g32, I_G32<6>)

#define ENGINE_FORMATS(USE) ENGINE_BLOCKS(USE) ENGINE_K_BLOCKS(USE) ENGINE_TABLES(USE) ENGINE_ZERO_POINTS(USE) ENGINE_OWN(USE)
