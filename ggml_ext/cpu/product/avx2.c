/* avx2.c - the products for x86-64 with AVX2, FMA and F16C. */
#define PLONG_ISA_STRING "avx2"
#define PLONG_NAME(x)    x##_avx2

#include "cpu/product/body/base.h"
#include "cpu/kernel.h"

extern const struct plong_kernel plong_kernel_avx2;

static bool isa_usable(void) { return plong_kernel_avx2.usable(); }

#include "cpu/simd/avx2.h"
#include "cpu/product/simd/ints_avx2.h"

#define ROWS         3
#define FLOAT_ROWS   6
#define SIGNED_CODES 1

/* Sums of two products fit 16 bits: codes are at most 127, and signed ones at least -128. */
static inline vi vi_dot(vi acc, vc w, vc x) {
    return vi_add(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
static inline vi vi_dot_wide(vi acc, vc w, vc x) { return vi_dot(acc, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w)); }

#include "cpu/product/body/body.h"
