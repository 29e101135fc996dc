/*
 * narrow_quant.h - reads a quantized cache for a few query rows (decode), for logits and for P*V, in the cache's own
 * integers with products that are exact in int32. Queries and probabilities become integers of 15 bits and a sign, a
 * hundred times finer than the bf16 of wide jobs. Offsets of blocks (q4_1, q5_1) are multiplied by the sum of the
 * query's integers, or by the probabilities, in float32.
 */
#ifndef PLONG_CPU_AVX512_NARROW_QUANT_H
#define PLONG_CPU_AVX512_NARROW_QUANT_H

#define NARROW_INTEGERS /* narrow_f32.h gets no quantized rows */

#include "cpu/body/narrow_f32.h"

#define QUANT_ONE \
    16383.0f /* the largest query, or weight, in integers: sums of a block of keys, or of dims, fit int32 */

/* Byte offset of block b in a row, and of its integers */
PLONG_INLINE size_t quant_block(const int32_t type, int b) { return (size_t) b * block_bytes(type); }
PLONG_INLINE size_t quant_at(const int32_t type, int b) { return quant_block(type, b) + block_head(type); }

static inline vf vf_abs(vf x) { return _mm512_abs_ps(x); }

/* Replaces the rows of missing keys: blocks whose scale is 0 */
static const char quant_nothing[PLONG_MAX_D_K / 32 * (sizeof(uint16_t) + 32)];

/* Rows of NARROW_BLOCK keys in the cache, each `at` bytes beyond row[j]. n: how many there are; the others are zeros.
 * step: the distance between two rows in bytes, 0 if it is not constant */
struct quant_rows {
    int32_t              type, n, step;
    const char * const * row;
    size_t               at;
    const char *         padded[NARROW_BLOCK];
};

static void quant_rows(struct quant_rows * x, const char * const * row, int n, int32_t step, size_t at, int32_t type) {
    x->type = type;
    x->n    = n;
    x->step = n == NARROW_BLOCK ? step : 0;
    x->row  = n == NARROW_BLOCK ? row : x->padded;
    x->at   = n == NARROW_BLOCK ? at : 0;
    for (int j = 0; j < NARROW_BLOCK && n < NARROW_BLOCK; j++) {
        x->padded[j] = j < n ? row[j] + at : quant_nothing;
    }
}

/* The 32 integers of two blocks as bytes; they are at a + at and b + at */
PLONG_INLINE __m512i quant_two(const int32_t type, const char * a, const char * b, size_t at) {
    if (type == GGML_TYPE_Q8_0) {
        const __m256i x = _mm256_loadu_si256((const __m256i *) (a + at)),
                      y = _mm256_loadu_si256((const __m256i *) (b + at));
        return _mm512_inserti64x4(_mm512_castsi256_si512(x), y, 1);
    }
    const int64_t fours = 0x0004000400040004;
    const __m512i shift = _mm512_setr_epi64(0, 0, fours, fours, 0, 0, fours, fours);
    __m512i       x     = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *) (a + at)));
    x                   = _mm512_mask_broadcast_i32x4(x, 0xff00, _mm_loadu_si128((const __m128i *) (b + at)));
    x                   = _mm512_and_si512(_mm512_srlv_epi16(x, shift), _mm512_set1_epi8(15));
    if (type == GGML_TYPE_IQ4_NL) {
        return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_setr_epi8(NL_VALUES)), x);
    }
    if (block_has_fifth(type)) {
        const uint64_t fifth = block_fifth(a + at) | (uint64_t) block_fifth(b + at) << 32;
        return _mm512_mask_sub_epi8(x, ~fifth, x, _mm512_set1_epi8(16));
    }
    return _mm512_sub_epi8(x, _mm512_set1_epi8(8));
}

/* The 16 bytes at `at` of row[0], row[stride], row[2 stride], row[3 stride] */
PLONG_INLINE __m512i quant_four(const char * const * row, const int stride, size_t at) {
    __m512i x = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *) (row[0] + at)));
    x         = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *) (row[stride] + at)), 1);
    x         = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *) (row[2 * stride] + at)), 2);
    return _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *) (row[3 * stride] + at)), 3);
}

/* Transposes x[4]: squares of 4 x 4 words of 32 bits in each lane of 128 */
PLONG_INLINE void quant_transpose_words(__m512i * x) {
    const __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
    const __m512i c = _mm512_unpacklo_epi32(x[2], x[3]), d = _mm512_unpackhi_epi32(x[2], x[3]);
    x[0] = _mm512_unpacklo_epi64(a, c);
    x[1] = _mm512_unpackhi_epi64(a, c);
    x[2] = _mm512_unpacklo_epi64(b, d);
    x[3] = _mm512_unpackhi_epi64(b, d);
}

/* The largest |x| of x[n], n a multiple of 16, compared by bits, so that NaN is the largest. */
PLONG_INLINE float quant_most(const float * x, int n) {
    __m512i top = _mm512_setzero_si512();
    for (int i = 0; i < n; i += 16) {
        top = _mm512_max_epu32(top, _mm512_castps_si512(vf_abs(vf_load(x + i))));
    }
    const uint32_t bits = _mm512_reduce_max_epu32(top);
    float          most;
    memcpy(&most, &bits, sizeof(most));
    return most;
}

/* Divides p[64] by its largest value, which is returned */
static inline float quant_normalize(float * p) {
    const float most = quant_most(p, NARROW_BLOCK);
    vec_scale(p, most > 1e-30f ? 1.0f / most : 0.0f, NARROW_BLOCK);
    return most;
}

/* p[64] times the offsets of as many keys, in all: offset [4] */
PLONG_INLINE float quant_offsets(const float * p, const vf * offset) {
    vf sum = vf_zero();
    for (int i = 0; i < 4; i++) {
        sum = vf_fma(vf_load(p + 16 * i), offset[i], sum);
    }
    return vf_sum(sum);
}

/* Does the i-th of n parts of prefetching the next `keys` keys */
PLONG_INLINE void quant_prefetch(struct prefetch_queue * ahead, uint32_t keys, uint32_t i, uint32_t n) {
    prefetch_rows_of(ahead, (int) (keys * (i + 1) / n - keys * i / n));
}

#endif
