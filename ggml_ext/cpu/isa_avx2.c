/* isa_avx2.c - the tile body for x86-64 with AVX2, FMA and F16C. */
#define PLONG_ISA_AVX2
#define PLONG_ISA_STRING "avx2"
#define PLONG_NAME(x)    x##_avx2

#include <stdbool.h>

static bool isa_usable(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

#include "tile.h"
