// Formats whose codes stand for the values of a table.
#include "linear_quantized.h"

#define FORMATS(USE) USE(iq4_nl, Iq4_Nl) USE(iq4_xs, Iq4_Xs) USE(mxfp4, Mxfp4) USE(nvfp4_mul, Nvfp4_Mul) USE(nvfp4_div, Nvfp4_Div)
ENGINE_BLOCK_FORMATS(FORMATS)
