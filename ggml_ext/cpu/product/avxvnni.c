/* avxvnni.c - the products for x86-64 with AVX2 and dot products of bytes: Intel from Alder Lake, AMD from Zen 5. */
#define PLONG_ISA_STRING "avxvnni"
#define PLONG_NAME(x)    x##_avxvnni

#include <cpuid.h>
#include <stdbool.h>

#include "cpu/product/product.h"

extern const struct plong_product plong_product_avx2;

static bool isa_usable(void) {
    unsigned a, b, c, d;
    return plong_product_avx2.usable() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4); /* AVX_VNNI */
}

#include "cpu/product/body/base.h"
#include "cpu/simd/avx2.h"
#include "cpu/product/simd/ints_avx2.h"

#define ROWS         4
#define FLOAT_ROWS   6
#define SIGNED_CODES 0

static inline vi vi_dot(vi acc, vc w, vc x) { return _mm256_dpbusd_avx_epi32(acc, w, x); }
static inline vi vi_dot_wide(vi acc, vc w, vc x) { return vi_dot(acc, w, x); }

#include "cpu/product/body/body.h"
