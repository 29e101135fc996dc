/* avx512.h - the vector of floats on AVX-512 F, BW, DQ and VL: 16 lanes. Its contract is in vf.h. */
#ifndef PLONG_CPU_SIMD_AVX512_H
#define PLONG_CPU_SIMD_AVX512_H

#include <immintrin.h>

#include "cpu/simd/vf.h"

typedef __m512 vf;
#define VW 16
#define MR 12
#define NV 2
static inline vf    vf_zero(void) { return _mm512_setzero_ps(); }
static inline vf    vf_set1(float x) { return _mm512_set1_ps(x); }
static inline vf    vf_load(const float * p) { return _mm512_loadu_ps(p); }
static inline void  vf_store(float * p, vf a) { _mm512_storeu_ps(p, a); }
static inline vf    vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf    vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf    vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf    vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf    vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf    vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline float vf_sum(vf a) { return _mm512_reduce_add_ps(a); }
static inline float vf_hmax(vf a) { return _mm512_reduce_max_ps(a); }
static inline vf    vf_f16(const uint16_t * p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p)); }
static inline vf    vf_bf16(const uint16_t * p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) p)), 16));
}
static inline vf vf_i8(const int8_t * p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) p)));
}
static inline vf vf_i4(const uint8_t * p, bool high) {
    const vf      digits = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    const __m512i x      = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *) p));
    return _mm512_permutexvar_ps(high ? _mm512_srli_epi32(x, 4) : x, digits); /* by the low 4 bits */
}
static inline vf vf_i5(const uint8_t * p, bool high, uint32_t bits) {
    const vf x = _mm512_sub_ps(vf_i4(p, high), _mm512_set1_ps(8));
    return _mm512_mask_add_ps(x, (__mmask16) bits, x, _mm512_set1_ps(16));
}
static inline vf vf_nl(const uint8_t * p, bool high) {
    const vf      values = { NL_VALUES };
    const __m512i x      = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *) p));
    return _mm512_permutexvar_ps(high ? _mm512_srli_epi32(x, 4) : x, values);
}
static inline float f16_one(uint16_t x) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x))); }
static inline bool  vf_any_gt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
static inline vf    vf_exp2(vf x) {
    const __mmask16 keep = _mm512_cmp_ps_mask(x, _mm512_set1_ps(EXP2_MIN), _CMP_NLT_UQ); /* NaN too */
    const vf        r    = _mm512_reduce_ps(x, 0);                                       /* x - round(x) */
    vf              y    = _mm512_set1_ps(EXP2_C6);
    y                    = _mm512_fmadd_ps(y, r, _mm512_set1_ps(EXP2_C5));
    y                    = _mm512_fmadd_ps(y, r, _mm512_set1_ps(EXP2_C4));
    y                    = _mm512_fmadd_ps(y, r, _mm512_set1_ps(EXP2_C3));
    y                    = _mm512_fmadd_ps(y, r, _mm512_set1_ps(EXP2_C2));
    y                    = _mm512_fmadd_ps(y, r, _mm512_set1_ps(EXP2_C1));
    y                    = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(keep, y, _mm512_sub_ps(x, r));
}
static inline void vf_sum4(vf a, vf b, vf c, vf d, float * out) {
    const vf ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const vf cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const vf x  = _mm512_add_ps(
        _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
        _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
    const __m256 y = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1)));
}
static inline void vf_transpose(vf * r) {
    vf t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i]     = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) { /* column 4 * lane + j of rows i .. i + 3 in r[i + j] */
        const __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]);
        const __m512d c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
        r[i]     = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    for (int j = 0; j < 4; j++) {
        t[j]      = _mm512_shuffle_f32x4(r[j], r[4 + j], 0x88); /* lanes 0 and 2 of both */
        t[4 + j]  = _mm512_shuffle_f32x4(r[j], r[4 + j], 0xdd);
        t[8 + j]  = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0x88);
        t[12 + j] = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0xdd);
    }
    for (int j = 0; j < 4; j++) {
        r[j]      = _mm512_shuffle_f32x4(t[j], t[8 + j], 0x88);
        r[8 + j]  = _mm512_shuffle_f32x4(t[j], t[8 + j], 0xdd);
        r[4 + j]  = _mm512_shuffle_f32x4(t[4 + j], t[12 + j], 0x88);
        r[12 + j] = _mm512_shuffle_f32x4(t[4 + j], t[12 + j], 0xdd);
    }
}

#endif
