/*
 * simd.h - one vector of floats, `vf`, for the instruction set that the including file was compiled for
 * (PLONG_ISA_AVX512, PLONG_ISA_AVX2, PLONG_ISA_NEON, else scalar). VW lanes; MR x NV is the register block of gemm.h.
 */
#ifndef PLONG_CPU_SIMD_H
#define PLONG_CPU_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* exp(r) for |r| <= ln(2)/2, Taylor to degree 6: relative error below 2e-7 */
#define EXP_C2     0.5f
#define EXP_C3     0.16666667f
#define EXP_C4     0.041666668f
#define EXP_C5     0.0083333338f
#define EXP_C6     0.0013888889f
#define EXP_LOG2E  1.44269504f
#define EXP_LN2_HI 0.693359375f
#define EXP_LN2_LO (-2.12194440e-4f)
#define EXP_MIN    (-87.0f) /* below this the result is 0 */

#if defined(PLONG_ISA_AVX512)

#include <immintrin.h>
typedef __m512 vf;
#define VW 16
#define MR 4
#define NV 4
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
static inline vf vf_exp(vf x) {
    const __mmask16 zero = _mm512_cmp_ps_mask(x, _mm512_set1_ps(EXP_MIN), _CMP_LT_OQ);
    const vf        n    = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(EXP_LOG2E)), 0);
    vf              r    = _mm512_fnmadd_ps(n, _mm512_set1_ps(EXP_LN2_HI), x);
    r                    = _mm512_fnmadd_ps(n, _mm512_set1_ps(EXP_LN2_LO), r);
    vf y                 = _mm512_set1_ps(EXP_C6);
    y                    = _mm512_fmadd_ps(y, r, _mm512_set1_ps(EXP_C5));
    y                    = _mm512_fmadd_ps(y, r, _mm512_set1_ps(EXP_C4));
    y                    = _mm512_fmadd_ps(y, r, _mm512_set1_ps(EXP_C3));
    y                    = _mm512_fmadd_ps(y, r, _mm512_set1_ps(EXP_C2));
    y                    = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    y                    = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    return _mm512_mask_mov_ps(_mm512_scalef_ps(y, n), zero, _mm512_setzero_ps());
}

#elif defined(PLONG_ISA_AVX2)

#include <immintrin.h>
typedef __m256      vf;
#define VW 8
#define MR 4
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
static inline vf vf_exp(vf x) {
    const vf zero = _mm256_cmp_ps(x, _mm256_set1_ps(EXP_MIN), _CMP_LT_OQ);
    x             = _mm256_max_ps(_mm256_set1_ps(EXP_MIN), x); /* NaN in x stays: max returns its second operand */
    const vf n =
        _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(EXP_LOG2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vf r            = _mm256_fnmadd_ps(n, _mm256_set1_ps(EXP_LN2_HI), x);
    r               = _mm256_fnmadd_ps(n, _mm256_set1_ps(EXP_LN2_LO), r);
    vf y            = _mm256_set1_ps(EXP_C6);
    y               = _mm256_fmadd_ps(y, r, _mm256_set1_ps(EXP_C5));
    y               = _mm256_fmadd_ps(y, r, _mm256_set1_ps(EXP_C4));
    y               = _mm256_fmadd_ps(y, r, _mm256_set1_ps(EXP_C3));
    y               = _mm256_fmadd_ps(y, r, _mm256_set1_ps(EXP_C2));
    y               = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f));
    y               = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f));
    const __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(zero, _mm256_mul_ps(y, _mm256_castsi256_ps(e)));
}

#elif defined(PLONG_ISA_NEON)

#include <arm_neon.h>
typedef float32x4_t vf;
#define VW 4
#define MR 4
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
static inline vf vf_exp(vf x) {
    const uint32x4_t zero = vcltq_f32(x, vdupq_n_f32(EXP_MIN));
    x                     = vmaxq_f32(x, vdupq_n_f32(EXP_MIN));
    const vf n            = vrndnq_f32(vmulq_f32(x, vdupq_n_f32(EXP_LOG2E)));
    vf       r            = vfmsq_f32(x, n, vdupq_n_f32(EXP_LN2_HI));
    r                     = vfmsq_f32(r, n, vdupq_n_f32(EXP_LN2_LO));
    vf y                  = vdupq_n_f32(EXP_C6);
    y                     = vfmaq_f32(vdupq_n_f32(EXP_C5), y, r);
    y                     = vfmaq_f32(vdupq_n_f32(EXP_C4), y, r);
    y                     = vfmaq_f32(vdupq_n_f32(EXP_C3), y, r);
    y                     = vfmaq_f32(vdupq_n_f32(EXP_C2), y, r);
    y                     = vfmaq_f32(vdupq_n_f32(1.0f), y, r);
    y                     = vfmaq_f32(vdupq_n_f32(1.0f), y, r);
    const int32x4_t e     = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(vmulq_f32(y, vreinterpretq_f32_s32(e))), zero));
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
static inline vf vf_i8(const int8_t * p) { return (float) *p; }
static inline vf vf_exp(vf x) { return x < EXP_MIN ? 0.0f : expf(x); }

#endif

#endif
