/* avx512bf16.c - the tile body for x86-64 with AVX-512's products of bf16 pairs: AMD from Zen 4 on. */
#define PLONG_ISA_STRING "avx512bf16"
#define PLONG_NAME(x)    x##_avx512bf16
#define PLONG_F32        plong_kernel_avx512 /* the kernel that runs when float32 is requested */

#include <cpuid.h>
#include <stdbool.h>

#include "cpu/kernel.h"

extern const struct plong_kernel plong_kernel_avx512;

static bool isa_usable(void) {
    unsigned a, b, c, d;
    if (!plong_kernel_avx512.usable() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        return false;
    }
    if (!(c & 1u << 1) || !(c & 1u << 11)) { /* AVX512_VBMI, AVX512_VNNI */
        return false;
    }
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 5); /* AVX512_BF16 */
}

#include "cpu/simd/avx512.h"
#include "cpu/avx512bf16/wide.h"
#include "cpu/avx512bf16/narrow_keys.h"
#include "cpu/avx512bf16/narrow_values.h"
#include "cpu/avx512/narrow_jobs.h"
#include "cpu/avx512bf16/latent.h"
#include "cpu/avx512bf16/scores.h"
#include "cpu/body/tile.h"
