/* avx2.h - the vector of floats on AVX2, FMA and F16C: 8 lanes. Its contract is in vf.h. */
#ifndef PLONG_CPU_SIMD_AVX2_H
#define PLONG_CPU_SIMD_AVX2_H

#include <immintrin.h>

#include "cpu/simd/vf.h"

typedef __m256 vf;
#define VW 8
#define MR 6
#define NV 2
static inline vf    vf_zero(void) { return _mm256_setzero_ps(); }
static inline vf    vf_set1(float x) { return _mm256_set1_ps(x); }
static inline vf    vf_load(const float * p) { return _mm256_loadu_ps(p); }
static inline void  vf_store(float * p, vf a) { _mm256_storeu_ps(p, a); }
static inline vf    vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf    vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf    vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf    vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf    vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf    vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline float vf_sum(vf a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s        = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline float vf_hmax(vf a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s        = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
static inline vf vf_f16(const uint16_t * p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)); }
static inline vf vf_bf16(const uint16_t * p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) p)), 16));
}
static inline vf vf_i8(const int8_t * p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) p)));
}
static inline vf vf_i4(const uint8_t * p, bool high) {
    const __m256i x = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *) p));
    const __m256i y = high ? _mm256_srli_epi32(x, 4) : _mm256_and_si256(x, _mm256_set1_epi32(15));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(y, _mm256_set1_epi32(8)));
}
static inline vf vf_i5(const uint8_t * p, bool high, uint32_t bits) {
    const __m256i x     = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *) p));
    const __m256i y     = high ? _mm256_srli_epi32(x, 4) : _mm256_and_si256(x, _mm256_set1_epi32(15));
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), one = _mm256_set1_epi32(16);
    const __m256i fifth = _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32((int) (bits << 4)), lanes), one);
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_or_si256(y, fifth), one));
}
static inline vf vf_nl(const uint8_t * p, bool high) {
    const __m128i x = _mm_loadl_epi64((const __m128i *) p);
    const __m128i y = _mm_and_si128(high ? _mm_srli_epi16(x, 4) : x, _mm_set1_epi8(15));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_shuffle_epi8(_mm_setr_epi8(NL_VALUES), y)));
}
static inline float f16_one(uint16_t x) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x))); }
static inline bool  vf_any_gt(vf a, vf b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0; }
static inline vf    vf_exp2(vf x) {
    const vf zero   = _mm256_cmp_ps(x, _mm256_set1_ps(EXP2_MIN), _CMP_LT_OQ);
    x               = _mm256_max_ps(_mm256_set1_ps(EXP2_MIN), x); /* a NaN stays: max returns its second operand */
    const vf n      = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const vf r      = _mm256_sub_ps(x, n);
    vf       y      = _mm256_set1_ps(EXP2_C6);
    y               = _mm256_fmadd_ps(y, r, _mm256_set1_ps(EXP2_C5));
    y               = _mm256_fmadd_ps(y, r, _mm256_set1_ps(EXP2_C4));
    y               = _mm256_fmadd_ps(y, r, _mm256_set1_ps(EXP2_C3));
    y               = _mm256_fmadd_ps(y, r, _mm256_set1_ps(EXP2_C2));
    y               = _mm256_fmadd_ps(y, r, _mm256_set1_ps(EXP2_C1));
    y               = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f));
    const __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(zero, _mm256_mul_ps(y, _mm256_castsi256_ps(e)));
}
static inline void vf_sum4(vf a, vf b, vf c, vf d, float * out) {
    const vf x = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)));
}
static inline void vf_transpose(vf * r) {
    vf t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i]     = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i]     = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        t[i]     = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
    memcpy(r, t, sizeof(t));
}

#endif
