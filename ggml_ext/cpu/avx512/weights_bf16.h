/* weights_bf16.h - 2^(logit - maximum) in bf16, in the order in which pack_bf16.h has V. */
#ifndef PLONG_CPU_AVX512_WEIGHTS_BF16_H
#define PLONG_CPU_AVX512_WEIGHTS_BF16_H

#include "cpu/avx512/pack_bf16.h"
#include "cpu/body/softmax.h"

/* 2^x for x <= LAZY, as exact as bf16 can represent */
static inline vf exp2_bf16(vf x) {
    const __mmask16 keep = _mm512_cmp_ps_mask(x, _mm512_set1_ps(EXP2_MIN), _CMP_NLT_UQ); /* NaN too */
    const vf        r    = _mm512_reduce_ps(x, 1);                                       /* x - floor(x) */
    vf              y    = _mm512_set1_ps(EXP2_B3);
    y                    = _mm512_fmadd_ps(y, r, _mm512_set1_ps(EXP2_B2));
    y                    = _mm512_fmadd_ps(y, r, _mm512_set1_ps(EXP2_B1));
    y                    = _mm512_fmadd_ps(y, r, _mm512_set1_ps(EXP2_B0));
    return _mm512_maskz_scalef_ps(keep, y, x);
}

static inline elem * wide_probabilities(float * s, elem * p) {
    (void) s;
    return p;
}

/* p[n] *= f, n a multiple of 32 */
static void wide_rescale(elem * p, int n, float f) {
    for (int i = 0; i < n; i += 32) {
        const vf a = vf_mul(vf_bf16(p + i), vf_set1(f)), b = vf_mul(vf_bf16(p + i + 16), vf_set1(f));
        _mm512_storeu_si512(p + i, (__m512i) _mm512_cvtne2ps_pbh(b, a));
    }
}

/* p[n] = e, 32 keys each, n 32 or 64. The rounded weights are added to l[VW], so that the weights of a row still add up
 * to one. */
PLONG_INLINE void wide_weights(elem * p, const __m512i * e, int n, float * l) {
    const __m512bh one = (__m512bh) _mm512_set1_epi16(0x3f80);
    vf             sum = _mm512_dpbf16_ps(vf_load(l), (__m512bh) e[0], one);
    _mm512_storeu_si512(p, e[0]);
    if (n > 32) {
        sum = _mm512_dpbf16_ps(sum, (__m512bh) e[1], one);
        _mm512_storeu_si512(p + 32, e[1]);
    }
    vf_store(l, sum);
}

/* p[n] = 2^(s - m) in the order of value_row(); n is 32 or 64 */
PLONG_INLINE void wide_exp(const float * s, elem * p, int n, float m, float * l) {
    const vf      shift         = vf_set1(m);
    const __m512i order         = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
    __m512i       e[CHUNK / 32] = { _mm512_setzero_si512() }; /* n is at least 32 */
    for (int i = 0; i < n; i += 32) {
        const vf      a = exp2_bf16(vf_sub(vf_load(s + i), shift));
        const vf      b = exp2_bf16(vf_sub(vf_load(s + i + 16), shift));
        const __m512i x = (__m512i) _mm512_cvtne2ps_pbh(b, a);
        e[i / 32]       = _mm512_permutexvar_epi64(order, x);
    }
    wide_weights(p, e, n, l);
}

/*
 * The same in fixed point: 32 weights at a time in 16 bits each, the exponent in bf16's place above 8 bits of fraction.
 * 2^f - 1 is f minus a correction below 0.087, which depends on the first 6 bits of f. The table has it in units of
 * 1/256, rounded so that the mean square error is smallest: 1.2 times that of rounding to bf16 alone.
 */
#define FIXED_ONE   256.0f
#define FIXED_BIAS  (127 * 256)
#define FIXED_WHOLE 12582912.0f /* 1.5 * 2^23: plus an integer below 2^22, the last bits are that integer */
#define FIXED_MAX   4096.0f     /* limit of |m|, so that m's share of that integer is below 2^20 */
#define FIXED_REACH 0x1p60f     /* limit of sum |q|: with keys below KEYS_TAME, no logit is NaN or infinite */
#define FIXED_NONE  INFINITY

static const uint8_t fixed_table[64] __attribute__((aligned(64))) = {
    1,  2,  3,  5,  5,  7,  8,  9,  10, 11, 11, 13, 13, 14, 15, 16, 16, 17, 18, 18, 19, 19,
    20, 20, 21, 21, 21, 22, 22, 22, 22, 22, 22, 23, 23, 22, 22, 22, 22, 22, 22, 21, 21, 20,
    20, 20, 19, 18, 18, 17, 16, 16, 14, 14, 13, 12, 10, 10, 8,  7,  6,  4,  3,  2,
};

/* What wide_fixed() adds to the logits of a row: an integer, as m is one. reach: sum |q|. */
static inline float fixed_shift(float m, float reach) {
    return reach < FIXED_REACH && fabsf(m) < FIXED_MAX ? FIXED_WHOLE + (float) FIXED_BIAS - FIXED_ONE * m : FIXED_NONE;
}

/* Floats of one sign have the same order as integers: values far above saturate, values far below become 0. */
PLONG_INLINE __m512i fixed_logits(const float * s, vf shift) {
    const vf      one = vf_set1(FIXED_ONE), whole = vf_set1(FIXED_WHOLE);
    const __m512i a = (__m512i) vf_fma(vf_load(s), one, shift), b = (__m512i) vf_fma(vf_load(s + 16), one, shift);
    return _mm512_packus_epi32(_mm512_sub_epi32(a, (__m512i) whole), _mm512_sub_epi32(b, (__m512i) whole));
}

/* 0, for a masked key, becomes -0. */
PLONG_INLINE __m512i fixed_exp(__m512i y) {
    const __m512i table = _mm512_load_si512(fixed_table);
    const __m512i above = _mm512_maskz_permutexvar_epi8(0x5555555555555555, _mm512_srli_epi16(y, 2), table);
    return _mm512_avg_epu16(_mm512_sub_epi16(y, above), _mm512_setzero_si512());
}

PLONG_INLINE enum fixed wide_fixed(const float * s, elem * p, int n, float shift, float * l) {
    if (shift == FIXED_NONE) {
        return FIXED_FAILED;
    }
    const vf      c    = vf_set1(shift);
    const __m512i y[2] = { fixed_logits(s, c), n > 32 ? fixed_logits(s + 32, c) : _mm512_setzero_si512() };
    const __m512i top  = _mm512_max_epu16(y[0], y[1]);
    if (_mm512_cmpgt_epu16_mask(top, _mm512_set1_epi16((short) (FIXED_BIAS + (int) (LAZY * FIXED_ONE))))) {
        return FIXED_FAILED;
    }
    if (!_mm512_cmpgt_epu16_mask(top, _mm512_set1_epi16((short) (FIXED_BIAS - (int) (SKIP * FIXED_ONE))))) {
        return FIXED_SKIP;
    }
    const __m512i e[2] = { fixed_exp(y[0]), fixed_exp(y[1]) };
    wide_weights(p, e, n, l);
    return FIXED_DONE;
}

#endif
