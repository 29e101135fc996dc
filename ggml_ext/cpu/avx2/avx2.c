/* avx2.c - the tile body for x86-64 with AVX2, FMA and F16C. */
#define PLONG_ISA_STRING "avx2"
#define PLONG_NAME(x)    x##_avx2
#define PLONG_F32        plong_kernel_avx2 /* the kernel that runs when float32 is requested */

#include <cpuid.h>
#include <stdbool.h>

static bool isa_usable(void) {
    unsigned a, b, c, d;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) &&
           (c & 1u << 29); /* F16C, which clang 14 has no name for */
}

#include "cpu/simd/avx2.h"
#include "cpu/body/wide_f32.h"
#include "cpu/body/narrow_none.h"
#include "cpu/body/latent_none.h"
#include "cpu/avx2/scores.h"
#include "cpu/body/tile.h"
