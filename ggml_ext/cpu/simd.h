/*
 * simd.h - one vector of floats, `vf`, for the instruction set that the including file was compiled for
 * (PLONG_ISA_AVX512, PLONG_ISA_AVX2, PLONG_ISA_NEON, else scalar). VW lanes; MR x NV is the register block of gemm.h.
 * vf_i4: nibbles less 8, the high or the low ones of VW bytes. vf_any_gt: whether a > b in some lane. vf_sum4: the sums of
 * four vectors. vf_transpose: VW vectors as a square.
 */
#ifndef PLONG_CPU_SIMD_H
#define PLONG_CPU_SIMD_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* 2^r for |r| <= 1/2: minimax, relative error below 2e-9 */
#define EXP2_C1  0.693147206f
#define EXP2_C2  0.240226469f
#define EXP2_C3  0.0555032878f
#define EXP2_C4  0.00961848896f
#define EXP2_C5  0.00133999312f
#define EXP2_C6  0.000153458120f
#define EXP2_MIN (-126.0f) /* below this the result is 0 */

/* 2^r for 0 <= r < 1: minimax, relative error below 8e-5 where bf16 rounds at 2e-3 */
#define EXP2_B0 0.999925219f
#define EXP2_B1 0.695833541f
#define EXP2_B2 0.226067155f
#define EXP2_B3 0.0780245226f

#define PLONG_INLINE static inline __attribute__((always_inline))

#if defined(PLONG_ISA_AVX512)

#include <immintrin.h>
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
static inline bool vf_any_gt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
static inline vf   vf_exp2(vf x) {
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

#elif defined(PLONG_ISA_AVX2)

#include <immintrin.h>
typedef __m256      vf;
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
static inline bool vf_any_gt(vf a, vf b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0; }
static inline vf   vf_exp2(vf x) {
    const vf zero   = _mm256_cmp_ps(x, _mm256_set1_ps(EXP2_MIN), _CMP_LT_OQ);
    x               = _mm256_max_ps(_mm256_set1_ps(EXP2_MIN), x); /* NaN in x stays: max returns its second operand */
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

#elif defined(PLONG_ISA_NEON)

#include <arm_neon.h>
typedef float32x4_t vf;
#define VW 4
#define MR 6
#define NV 4
static inline vf    vf_zero(void) { return vdupq_n_f32(0); }
static inline vf    vf_set1(float x) { return vdupq_n_f32(x); }
static inline vf    vf_load(const float * p) { return vld1q_f32(p); }
static inline void  vf_store(float * p, vf a) { vst1q_f32(p, a); }
static inline vf    vf_add(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf    vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
static inline vf    vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf    vf_max(vf a, vf b) { return vmaxq_f32(a, b); }
static inline vf    vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline float vf_sum(vf a) { return vaddvq_f32(a); }
static inline float vf_hmax(vf a) { return vmaxvq_f32(a); }
static inline vf    vf_f16(const uint16_t * p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static inline vf    vf_bf16(const uint16_t * p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
static inline vf    vf_i8(const int8_t * p) {
    int32_t word;
    memcpy(&word, p, sizeof(word));
    const int8x8_t b = vreinterpret_s8_s32(vdup_n_s32(word));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(b))));
}
static inline vf vf_i4(const uint8_t * p, bool high) {
    uint32_t word;
    memcpy(&word, p, sizeof(word));
    const uint8x8_t b = vreinterpret_u8_u32(vdup_n_u32(high ? word >> 4 : word));
    const int8x8_t  x = vsub_s8(vreinterpret_s8_u8(vand_u8(b, vdup_n_u8(15))), vdup_n_s8(8));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(x))));
}
static inline bool vf_any_gt(vf a, vf b) { return vmaxvq_u32(vcgtq_f32(a, b)) != 0; }
static inline vf   vf_exp2(vf x) {
    const uint32x4_t zero = vcltq_f32(x, vdupq_n_f32(EXP2_MIN));
    x                     = vmaxq_f32(x, vdupq_n_f32(EXP2_MIN));
    const vf n            = vrndnq_f32(x);
    const vf r            = vsubq_f32(x, n);
    vf       y            = vdupq_n_f32(EXP2_C6);
    y                     = vfmaq_f32(vdupq_n_f32(EXP2_C5), y, r);
    y                     = vfmaq_f32(vdupq_n_f32(EXP2_C4), y, r);
    y                     = vfmaq_f32(vdupq_n_f32(EXP2_C3), y, r);
    y                     = vfmaq_f32(vdupq_n_f32(EXP2_C2), y, r);
    y                     = vfmaq_f32(vdupq_n_f32(EXP2_C1), y, r);
    y                     = vfmaq_f32(vdupq_n_f32(1.0f), y, r);
    const int32x4_t e     = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(vmulq_f32(y, vreinterpretq_f32_s32(e))), zero));
}
static inline void vf_sum4(vf a, vf b, vf c, vf d, float * out) {
    vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}
static inline void vf_transpose(vf * r) {
    const float32x4x2_t ab = vtrnq_f32(r[0], r[1]), cd = vtrnq_f32(r[2], r[3]);
    r[0] = vcombine_f32(vget_low_f32(ab.val[0]), vget_low_f32(cd.val[0]));
    r[1] = vcombine_f32(vget_low_f32(ab.val[1]), vget_low_f32(cd.val[1]));
    r[2] = vcombine_f32(vget_high_f32(ab.val[0]), vget_high_f32(cd.val[0]));
    r[3] = vcombine_f32(vget_high_f32(ab.val[1]), vget_high_f32(cd.val[1]));
}

#else /* scalar */

typedef float       vf;
#define VW 1
#define MR 4
#define NV 4
static inline vf    vf_zero(void) { return 0.0f; }
static inline vf    vf_set1(float x) { return x; }
static inline vf    vf_load(const float * p) { return *p; }
static inline void  vf_store(float * p, vf a) { *p = a; }
static inline vf    vf_add(vf a, vf b) { return a + b; }
static inline vf    vf_sub(vf a, vf b) { return a - b; }
static inline vf    vf_mul(vf a, vf b) { return a * b; }
static inline vf    vf_max(vf a, vf b) { return a > b ? a : b; }
static inline vf    vf_fma(vf a, vf b, vf c) { return a * b + c; }
static inline float vf_sum(vf a) { return a; }
static inline float vf_hmax(vf a) { return a; }
static inline vf    vf_f16(const uint16_t * p) {
    const uint32_t sign = (uint32_t) (*p & 0x8000) << 16, mant = *p & 0x03ff;
    const int      exp = (*p >> 10) & 31;
    if (exp == 0) { /* zero or subnormal: mant * 2^-24 */
        const float y = (float) mant * 5.9604645e-8f;
        return sign ? -y : y;
    }
    const uint32_t bits = sign | (exp == 31 ? 0x7f800000u : (uint32_t) (exp + 112) << 23) | mant << 13;
    float          y;
    memcpy(&y, &bits, sizeof(y));
    return y;
}
static inline vf vf_bf16(const uint16_t * p) {
    const uint32_t bits = (uint32_t) *p << 16;
    float          y;
    memcpy(&y, &bits, sizeof(y));
    return y;
}
static inline vf   vf_i8(const int8_t * p) { return (float) *p; }
static inline vf   vf_i4(const uint8_t * p, bool high) { return (float) ((high ? *p >> 4 : *p & 15) - 8); }
static inline bool vf_any_gt(vf a, vf b) { return a > b; }
static inline vf   vf_exp2(vf x) { return x < EXP2_MIN ? 0.0f : exp2f(x); }
static inline void vf_sum4(vf a, vf b, vf c, vf d, float * out) {
    out[0] = a;
    out[1] = b;
    out[2] = c;
    out[3] = d;
}
static inline void vf_transpose(vf * r) { (void) r; }

#endif

#endif
