/* ints_avx2.h - 8 integers of 32 bits in a vector of AVX2, but their dot products. The contract is in body.h. */
#include "cpu/product/simd/bytes_avx2.h"

typedef __m256i  vi;
typedef __m256i  vc;
static inline vi vi_zero(void) { return _mm256_setzero_si256(); }
static inline vi vi_set1(int32_t x) { return _mm256_set1_epi32(x); }
static inline vi vi_load(const int32_t * p) { return _mm256_loadu_si256((const __m256i *) p); }
static inline vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
static inline vf vi_float(vi x) { return _mm256_cvtepi32_ps(x); }
static inline vc vc_load(const void * p) { return _mm256_loadu_si256((const __m256i *) p); }
static inline vc vc_codes(const b32 * b) { return b[0]; }

/* Lane 4 l + v has the sum of half l of a[v]. */
static inline vi sum_halves(const vi * a) {
    return _mm256_hadd_epi32(_mm256_hadd_epi32(a[0], a[1]), _mm256_hadd_epi32(a[2], a[3]));
}
static inline vi vi_sums_16(const vi * a) {
    return _mm256_permutevar8x32_epi32(sum_halves(a), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
static inline vi vi_sums_32(const vi * a) {
    const vi x = sum_halves(a), y = sum_halves(a + 4);
    return vi_add(_mm256_permute2x128_si256(x, y, 0x20), _mm256_permute2x128_si256(x, y, 0x31));
}

PLONG_INLINE __m256 float_bytes(__m128i x) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)); }

static inline void signed_16(float d, const int8_t * bytes, float * to) {
    const __m128i x = _mm_loadu_si128((const __m128i *) bytes);
    _mm256_storeu_ps(to, _mm256_mul_ps(_mm256_set1_ps(d), float_bytes(x)));
    _mm256_storeu_ps(to + 8, _mm256_mul_ps(_mm256_set1_ps(d), float_bytes(_mm_srli_si128(x, 8))));
}

static inline void six_bits(const uint8_t * block, float * scales, float * mins) {
    const __m128i x   = _mm_loadu_si128((const __m128i *) block); /* d, d_min, and 4 bytes each: a, b, c */
    const __m128i six = unpack_six_bits(x);
    const float   d = f16_one(((const uint16_t *) block)[0]), d_min = f16_one(((const uint16_t *) block)[1]);
    _mm256_storeu_ps(scales, _mm256_mul_ps(_mm256_set1_ps(d), float_bytes(six)));
    _mm256_storeu_ps(mins, _mm256_mul_ps(_mm256_set1_ps(-d_min), float_bytes(_mm_srli_si128(six, 8))));
}

static inline void halves(const void * first, size_t stride, int n, float * to) {
    for (int i = 0; i < n; i++) {
        uint16_t x;
        memcpy(&x, (const char *) first + (size_t) i * stride, sizeof(x));
        to[i] = f16_one(x);
    }
}

static inline void exponents(const uint8_t * first, size_t stride, int n, float * to) {
    for (int i = 0; i < n; i++) {
        to[i] = GGML_E8M0_TO_FP32_HALF(first[(size_t) i * stride]);
    }
}
