/* neon.c - the tile body for 64-bit Arm. */
#define PLONG_ISA_STRING "neon"
#define PLONG_NAME(x)    x##_neon
#define PLONG_F32        plong_kernel_neon /* the kernel that runs when float32 is requested */

#include <stdbool.h>

static bool isa_usable(void) { return true; /* part of every AArch64 processor */ }

#include "cpu/simd/neon.h"
#include "cpu/body/wide_f32.h"
#include "cpu/body/narrow_none.h"
#include "cpu/body/latent_none.h"
#include "cpu/body/scores_plain.h"
#include "cpu/body/tile.h"
