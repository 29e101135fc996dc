/* scalar.c - the tile body for portable C, for any processor. */
#define PLONG_ISA_STRING "scalar"
#define PLONG_NAME(x)    x##_scalar
#define PLONG_F32        plong_kernel_scalar /* the kernel that runs when float32 is requested */

#include <stdbool.h>

static bool isa_usable(void) { return true; }

#include "cpu/simd/scalar.h"
#include "cpu/body/wide_f32.h"
#include "cpu/body/narrow_none.h"
#include "cpu/body/latent_none.h"
#include "cpu/body/scores_plain.h"
#include "cpu/body/tile.h"
