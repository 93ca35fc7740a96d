// Formats whose codes stand for the values of a table.
#include "linear_quantized.h"

#define FORMATS(USE) USE(iq4_nl, Iq4_Nl) USE(iq4_xs, Iq4_Xs) USE(mxfp4, Mxfp4)
ENGINE_BLOCK_FORMATS(FORMATS)
