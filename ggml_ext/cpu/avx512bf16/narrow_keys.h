/* narrow_keys.h - logits of a few query rows against quantized keys: 16 keys are the lanes, two dims a pair. */
#ifndef PLONG_CPU_AVX512BF16_NARROW_KEYS_H
#define PLONG_CPU_AVX512BF16_NARROW_KEYS_H

#include "cpu/avx512bf16/narrow.h"

/* The queries of a kv head, prepared by quant_queries(). */
struct quant_digits {
    int       blocks; /* of a row: d / 32 */
    int16_t * q;      /* [PLONG_NARROW][blocks][16][2] dims 4 g + h and 4 g + h + 2 of each block as pair 2 g + h */
    int32_t * start;  /* [PLONG_NARROW][blocks] -8 times the sum of a block: initial values of sums with nibbles */
    float *   weight; /* [PLONG_NARROW] value of a unit in a logit, per unit of K */
};

static size_t quant_size(int d) { return PLONG_NARROW * ((size_t) d / 32 * (64 + 4) + 4); }

static struct quant_digits quant_digits(uint8_t * digits, int d) {
    int32_t * start  = (int32_t *) (digits + PLONG_NARROW * (size_t) d * 2);
    float *   weight = (float *) (start + PLONG_NARROW * (size_t) d / 32);
    return (struct quant_digits) { d / 32, (int16_t *) digits, start, weight };
}

PLONG_INLINE struct quant_digits quant_digits_from(struct quant_digits x, int row) {
    x.q += (size_t) row * x.blocks * 32;
    x.start += row * x.blocks;
    x.weight += row;
    return x;
}

/* q [rows][dq], rows <= PLONG_NARROW */
static void quant_queries(int32_t type, const float * q, int rows, int dq, int d, uint8_t * out) {
    (void) type;
    const struct quant_digits x     = quant_digits(out, d);
    const __m512i             pairs = _mm512_set_epi16(
        31, 29, 30, 28, 27, 25, 26, 24, 23, 21, 22, 20, 19, 17, 18, 16, 15, 13, 14, 12, 11, 9, 10, 8, 7, 5, 6, 4, 3, 1,
        2, 0);
    for (int r = 0; r < rows; r++, q += dq) {
        const float max = quant_most(q, d);
        const vf    f   = vf_set1(max > 1e-30f ? QUANT_ONE / max : 0.0f);
        x.weight[r]     = max / QUANT_ONE;
        for (int b = 0; b < d / 32; b++) {
            const __m512i y = quant_int16(vf_mul(vf_load(q + 32 * b), f), vf_mul(vf_load(q + 32 * b + 16), f));
            x.start[r * (d / 32) + b] = _mm512_reduce_add_epi32(_mm512_madd_epi16(y, _mm512_set1_epi16(-8)));
            _mm512_storeu_si512(x.q + ((size_t) r * (d / 32) + b) * 32, _mm512_permutexvar_epi16(pairs, y));
        }
    }
}

PLONG_INLINE vf quant_float(__m512i a, __m512i b) { return _mm512_cvtepi32_ps(_mm512_add_epi32(a, b)); }

/* A block of 16 keys as bytes: x[g] [key][4], the dims 4 g ..; of nibbles the low ones are dims 4 g .., the high ones
 * 16 + 4 g .. */
PLONG_INLINE void quant_keys_bytes(const int32_t type, const char * const * row, size_t at, __m512i * x) {
    for (int j = 0; j < 4; j++) {
        x[j] = quant_nibbles(type) ? quant_four(row + j, 4, at) : quant_two(type, row[j], row[4 + j], at);
    }
    quant_transpose_words(x);
    if (!quant_nibbles(type)) {
        __m512i y[4];
        for (int j = 0; j < 4; j++) {
            y[j] = quant_two(type, row[8 + j], row[12 + j], at);
        }
        quant_transpose_words(y);
        for (int g = 0; g < 4; g++) {
            x[4 + g] = _mm512_shuffle_i64x2(x[g], y[g], 0xdd);
            x[g]     = _mm512_shuffle_i64x2(x[g], y[g], 0x88);
        }
    }
}

/* sum[2][rows] += the dims of x, pairs of which are lo and hi, times those of q */
PLONG_INLINE void quant_dot(
    const int rows, __m512i (*sum)[4], __m512i lo, __m512i hi, const int16_t * q, size_t stride) {
    for (int r = 0; r < rows; r++) {
        sum[0][r] = _mm512_dpwssd_epi32(sum[0][r], lo, quant_pair(q + r * stride));
        sum[1][r] = _mm512_dpwssd_epi32(sum[1][r], hi, quant_pair(q + r * stride + 2));
    }
}

/* s[rows][16 keys], those at `at` of row[16] */
PLONG_INLINE void quant_logits_16(
    const int32_t type, const int rows, const char * const * row, size_t at, const struct quant_digits q, float * s,
    struct prefetch_queue * ahead) {
    const __m512i nibble = _mm512_set1_epi16(15);
    const int     nb     = q.blocks;
    const size_t  stride = (size_t) nb * 32; /* from row to row of q */
    vf            total[4], scale[4], offset[4];
    for (int r = 0; r < rows; r++) {
        total[r] = vf_zero();
    }
    for (int b = 0; b < nb; b++) {
        const int16_t * qb = q.q + (size_t) b * 32;
        __m512i         x[8], sum[2][4];
        if (b % 4 == 0) {
            const int m = nb - b < 4 ? nb - b : 4;
            quant_lines(type, row, at + quant_block(type, b), m, scale, offset);
        }
        for (int r = 0; r < rows; r++) {
            sum[0][r] = quant_nibbles(type) ? _mm512_set1_epi32(q.start[r * nb + b]) : _mm512_setzero_si512();
            sum[1][r] = _mm512_setzero_si512();
        }
        quant_prefetch(ahead, 16, b, nb);
        quant_keys_bytes(type, row, at + quant_at(type, b), x);
        if (!quant_nibbles(type)) {
#pragma GCC unroll 8
            for (int g = 0; g < 8; g++) {
                const __m512i lo = _mm512_srai_epi16(_mm512_slli_epi16(x[g], 8), 8);
                quant_dot(rows, sum, lo, _mm512_srai_epi16(x[g], 8), qb + 4 * g, stride);
            }
        } else {
#pragma GCC unroll 4
            for (int g = 0; g < 4; g++) {
                const __m512i lo = _mm512_and_si512(x[g], nibble), hi = _mm512_srli_epi16(x[g], 12);
                const __m512i y = _mm512_srli_epi16(x[g], 8), z = _mm512_srli_epi16(x[g], 4);
                quant_dot(rows, sum, lo, _mm512_and_si512(y, nibble), qb + 4 * g, stride);
                quant_dot(rows, sum, _mm512_and_si512(z, nibble), hi, qb + 16 + 4 * g, stride);
            }
        }
        for (int r = 0; r < rows; r++) {
            total[r] = vf_fma(quant_float(sum[0][r], sum[1][r]), scale[b % 4], total[r]);
            if (block_has_min(type)) {
                total[r] = vf_fma(vf_set1((float) q.start[r * nb + b] / -8), offset[b % 4], total[r]);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        vf_store(s + r * NARROW_BLOCK, vf_mul(total[r], vf_set1(q.weight[r])));
    }
}

PLONG_INLINE void quant_logits_of(
    const int32_t type, const int rows, const struct quant_rows * x, const struct quant_digits q, float * s,
    struct prefetch_queue * ahead) {
    for (int j = 0; j < x->n; j += 16) {
        quant_logits_16(type, rows, x->row + j, x->at, q, s + j, ahead);
    }
}

/* s[rows][NARROW_BLOCK] for the keys, padded to 16. */
static void quant_logits(
    const struct quant_rows * x, uint8_t * digits, int rows, int d, float * s, struct prefetch_queue * ahead) {
    const struct quant_digits q = quant_digits(digits, d);
    for (int r = 0, step; r < rows; r += step) {
        step = quant_step(rows - r);
        QUANT_FOR_TYPE(quant_logits_of, x->type, step, x, quant_digits_from(q, r), s + r * NARROW_BLOCK, ahead)
    }
}

#endif
