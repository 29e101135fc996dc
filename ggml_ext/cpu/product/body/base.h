/* base.h - what the code for an instruction set needs from elsewhere. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "ggml.h"
#define GGML_COMMON_DECL_C
#include "ggml-common.h"
#include "ggml-impl.h"
#include "cpu/product/product.h"
