/* avx512.c - the tile body for x86-64 with AVX-512 F, BW, DQ, VL. */
#define PLONG_ISA_STRING "avx512"
#define PLONG_NAME(x)    x##_avx512
#define PLONG_F32        plong_kernel_avx512 /* the kernel that runs when float32 is requested */

#include <stdbool.h>

static bool isa_usable(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

#include "cpu/simd/avx512.h"
#include "cpu/body/wide_f32.h"
#include "cpu/body/narrow_none.h"
#include "cpu/body/latent_none.h"
#include "cpu/avx2/scores.h"
#include "cpu/body/tile.h"
