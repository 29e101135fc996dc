/*
 * few_quant.h - what reading a q8_0 or q4_0 cache for a few query rows (decode) needs, for logits and for P*V: in the
 * cache's own integers, products exact in int32. Queries and probabilities become integers of 15 bits and a sign, a
 * hundred times finer than the bf16 of wider tiles.
 */
#ifndef PLONG_CPU_FEW_QUANT_H
#define PLONG_CPU_FEW_QUANT_H

#include "blocks.h"

#define QUANT_ONE \
    16383.0f /* the largest query, or weight, in integers: sums of a block of keys, or of dims, fit int32 */

/* Bytes from the begin of a row to the integers of block b: a scale comes before them in both types */
PLONG_INLINE size_t quant_at(const int32_t type, int b) {
    return (size_t) b * few_quant_bytes(type) + sizeof(uint16_t);
}

static inline vf vf_abs(vf x) { return _mm512_abs_ps(x); }

/* What stands for the rows of keys that are not there: blocks whose scale is 0 */
static const char quant_nothing[16 * sizeof(struct q8_block)];

/* Rows of keys in the cache, padded to FEW_BLOCK. step: bytes from each to the next, 0 where they differ */
struct quant_rows {
    int32_t      type, n, step;
    const char * row[FEW_BLOCK];
};

/* at: bytes into each row */
static struct quant_rows quant_rows(const char * const * row, int n, int32_t step, size_t at, int32_t type) {
    struct quant_rows x = { .type = type, .n = n, .step = n == FEW_BLOCK ? step : 0 };
    for (int j = 0; j < n; j++) {
        x.row[j] = row[j] + at;
    }
    for (int j = n; j < FEW_BLOCK; j++) {
        x.row[j] = quant_nothing;
    }
    return x;
}

/* Which words of 16 bits hold the scales of m blocks, among words 32 part .. 32 part + 31 */
PLONG_INLINE __mmask32 quant_scale_words(const int32_t type, int m, int part) {
    __mmask32 words = 0;
    for (int b = 0; b < m; b++) {
        const int at = b * (int) few_quant_bytes(type) / 2 - 32 * part;
        words |= at >= 0 && at < 32 ? (__mmask32) 1 << at : 0;
    }
    return words;
}

PLONG_INLINE __m512i quant_or(const __m512i * x) {
    return _mm512_or_si512(_mm512_or_si512(x[0], x[1]), _mm512_or_si512(x[2], x[3]));
}

/* Words 0 and 17 of a row, and 34 and 51, to their places among those of 16 rows: each goes there at once. */
PLONG_INLINE void quant_scales_q8(const char * const * row, size_t at, int m, vf * scale) {
    const __mmask32 first = quant_scale_words(GGML_TYPE_Q8_0, m, 0), second = quant_scale_words(GGML_TYPE_Q8_0, m, 1);
    const __m512i   to01 = _mm512_mask_set1_epi16(_mm512_setzero_si512(), 0xffff0000u, 17);
    const __m512i   to23 = _mm512_mask_set1_epi16(_mm512_set1_epi16(2), 0xffff0000u, 19);
    __m512i         part[2][4]; /* by every fourth row: each waits for the one before */
    for (int j = 0; j < 4; j++) {
        part[0][j] = part[1][j] = _mm512_setzero_si512();
    }
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) {
        const __mmask32 here = (__mmask32) 0x00010001u << j;
        const __m512i   a    = _mm512_maskz_loadu_epi16(first, row[j] + at);
        part[0][j % 4]       = _mm512_mask_permutexvar_epi16(part[0][j % 4], here, to01, a);
        if (m > 2) {
            const __m512i b = _mm512_maskz_loadu_epi16(second, row[j] + at + 64);
            part[1][j % 4]  = _mm512_mask_permutexvar_epi16(part[1][j % 4], here, to23, b);
        }
    }
    const __m512i x = quant_or(part[0]), y = quant_or(part[1]);
    scale[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(x));
    scale[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1));
    scale[2] = _mm512_cvtph_ps(_mm512_castsi512_si256(y));
    scale[3] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(y, 1));
}

/* Words 0, 9, 18, 27 of 8 rows side by side, then of 16 rows block by block. */
PLONG_INLINE void quant_scales_q4(const char * const * row, size_t at, int m, vf * scale) {
    const __mmask32 words = quant_scale_words(GGML_TYPE_Q4_0, m, 0);
    const __m512i   to    = _mm512_set1_epi64(0x001b001200090000ll);
    __m512i         x[2]  = { _mm512_setzero_si512(), _mm512_setzero_si512() };
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) {
        const __m512i y = _mm512_maskz_loadu_epi16(words, row[j] + at);
        x[j / 8]        = _mm512_mask_permutexvar_epi16(x[j / 8], (__mmask32) 15 << (4 * (j % 8)), to, y);
    }
    const __m512i each = _mm512_setr_epi32( /* words 4 j, then 4 j + 1 */
        0x00040000, 0x000c0008, 0x00140010, 0x001c0018, 0x00240020, 0x002c0028, 0x00340030, 0x003c0038, 0x00050001,
        0x000d0009, 0x00150011, 0x001d0019, 0x00250021, 0x002d0029, 0x00350031, 0x003d0039);
    const __m512i y01 = _mm512_permutex2var_epi16(x[0], each, x[1]);
    const __m512i y23 = _mm512_permutex2var_epi16(x[0], _mm512_add_epi16(each, _mm512_set1_epi16(2)), x[1]);
    scale[0]          = _mm512_cvtph_ps(_mm512_castsi512_si256(y01));
    scale[1]          = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(y01, 1));
    scale[2]          = _mm512_cvtph_ps(_mm512_castsi512_si256(y23));
    scale[3]          = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(y23, 1));
}

/* scale[4]: of 16 rows' blocks b .. b + m, m <= 4; 0 beyond. A row gives its words to all blocks at once. */
PLONG_INLINE void quant_scales(const int32_t type, const char * const * row, int b, int m, vf * scale) {
    const size_t at = (size_t) b * few_quant_bytes(type);
    if (type == GGML_TYPE_Q8_0) {
        quant_scales_q8(row, at, m, scale);
    } else {
        quant_scales_q4(row, at, m, scale);
    }
}

/* The 32 bytes at `at` of two rows */
PLONG_INLINE __m512i quant_two(const char * a, const char * b, size_t at) {
    const __m256i x = _mm256_loadu_si256((const __m256i *) (a + at)),
                  y = _mm256_loadu_si256((const __m256i *) (b + at));
    return _mm512_inserti64x4(_mm512_castsi256_si512(x), y, 1);
}

/* The 16 bytes at `at` of row[0], row[stride], row[2 stride], row[3 stride] */
PLONG_INLINE __m512i quant_four(const char * const * row, const int stride, size_t at) {
    __m512i x = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *) (row[0] + at)));
    x         = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *) (row[stride] + at)), 1);
    x         = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *) (row[2 * stride] + at)), 2);
    return _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *) (row[3 * stride] + at)), 3);
}

/* x[4] as squares of 4 x 4 words of 32 bits in each lane of 128 */
PLONG_INLINE void quant_turn_words(__m512i * x) {
    const __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
    const __m512i c = _mm512_unpacklo_epi32(x[2], x[3]), d = _mm512_unpackhi_epi32(x[2], x[3]);
    x[0] = _mm512_unpacklo_epi64(a, c);
    x[1] = _mm512_unpackhi_epi64(a, c);
    x[2] = _mm512_unpacklo_epi64(b, d);
    x[3] = _mm512_unpackhi_epi64(b, d);
}

/* The largest |x| of x[n], n a multiple of 16; NaN when one is: vf_max() may lose it. */
PLONG_INLINE float quant_most(const float * x, int n) {
    vf top = vf_zero(), sum = vf_zero();
    for (int i = 0; i < n; i += 16) {
        const vf a = vf_abs(vf_load(x + i));
        top        = vf_max(top, a);
        sum        = vf_add(sum, a);
    }
    return _mm512_cmp_ps_mask(sum, sum, _CMP_UNORD_Q) ? NAN : vf_hmax(top);
}

/* p[64] becomes p over its largest, which is returned */
static inline float quant_normalize(float * p) {
    const float most = quant_most(p, FEW_BLOCK);
    vec_scale(p, most > 1e-30f ? 1.0f / most : 0.0f, FEW_BLOCK);
    return most;
}

/* The i-th of n parts of asking for `keys` of the keys ahead */
PLONG_INLINE void quant_ask(struct few_ahead * ahead, int keys, int i, int n) {
    few_prefetch(ahead, keys * (i + 1) / n - keys * i / n);
}

#endif
