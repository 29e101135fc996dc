/* base.h - what the code for an instruction set needs from elsewhere. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "ggml.h"
#define GGML_COMMON_DECL_C
#include "ggml-common.h"
#include "ggml-impl.h"
#include "cpu/product/product.h"
#include "cpu/simd/vf.h"

/* What nibbles stand for: in MXFP4, plus 12; in IQ4_NL, as signed bytes and plus 128. */
static const uint8_t mx_values[16] = { 12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0 };
static const int8_t  nl_values[16] = { NL_VALUES };
static const uint8_t nl_codes[16]  = { 1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241 };
