/* narrow_values.h - P*V of a few query rows against quantized values: 16 dims are the lanes, two keys a pair. */
#ifndef PLONG_CPU_AVX512BF16_NARROW_VALUES_H
#define PLONG_CPU_AVX512BF16_NARROW_VALUES_H

#include "cpu/avx512bf16/narrow.h"

/* sum[2][rows] += two values times their weights, w [rows][NARROW_BLOCK] from j on. */
PLONG_INLINE void quant_values_pair(
    const int32_t type, const int rows, const char * const * row, size_t at, const int16_t (*w)[NARROW_BLOCK], int j,
    __m512i (*sum)[4]) {
    __m512i lo, hi;
    if (!quant_nibbles(type)) {
        const __m512i two = quant_two(type, row[0], row[1], at);
        const __m512i a   = _mm512_cvtepi8_epi16(_mm512_castsi512_si256(two));
        const __m512i b   = _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(two, 1));
        lo                = _mm512_unpacklo_epi16(a, b);
        hi                = _mm512_unpackhi_epi16(a, b);
    } else { /* lo: low nibbles with the high ones above them */
        const __m512i each = _mm512_setr_epi32(
            0x00100000, 0x00110001, 0x00120002, 0x00130003, 0x00140004, 0x00150005, 0x00160006, 0x00170007, 0x00180008,
            0x00190009, 0x001a000a, 0x001b000b, 0x001c000c, 0x001d000d, 0x001e000e, 0x001f000f);
        const __m128i a  = _mm_loadu_si128((const __m128i *) (row[0] + at));
        const __m128i b  = _mm_loadu_si128((const __m128i *) (row[1] + at));
        const __m256i ab = _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
        lo               = _mm512_maskz_permutexvar_epi8(0x5555555555555555, each, _mm512_castsi256_si512(ab));
        hi               = _mm512_srli_epi16(lo, 4);
    }
    for (int r = 0; r < rows; r++) {
        const __m512i x = quant_pair(&w[r][j]);
        sum[0][r]       = _mm512_dpwssd_epi32(sum[0][r], lo, x);
        sum[1][r]       = _mm512_dpwssd_epi32(sum[1][r], hi, x);
    }
}

/* Weights of 4 blocks: each key's is its probability times its scale. */
struct quant_weights {
    int16_t w[4][4][NARROW_BLOCK]; /* [block][row] */
    float   unit[4][4];            /* what one of a row is worth */
    float   more[4][4];            /* what the offsets of the block add to each dim of a row */
};

/* acc[rows][dv] += 32 dims of 64 values: a block of each row */
PLONG_INLINE void quant_values_block(
    const int32_t type, const int rows, const struct quant_rows * v, int block, const struct quant_weights * weights,
    struct values_out x, struct prefetch_share share) {
    const int16_t (*w)[NARROW_BLOCK] = weights->w[block % 4];
    const float *        unit        = weights->unit[block % 4];
    const char * const * row         = v->row;
    const size_t         at          = v->at + quant_at(type, block);
    float *              acc         = x.acc + 32 * block;
    __m512i              sums[2][2][4]; /* of every other pair each: a product waits four cycles for the one before */
    for (int r = 0; r < rows; r++) {
        sums[0][0][r] = sums[0][1][r] = sums[1][0][r] = sums[1][1][r] = _mm512_setzero_si512();
    }
    for (int j = 0; j < NARROW_BLOCK; j += 8) {
        if (j % 16 == 0) {
            quant_prefetch(share.ahead, share.n, j / 16, NARROW_BLOCK / 16);
        }
#pragma GCC unroll 4 /* as a loop it takes half as long again: gcc copies the sums around */
        for (int i = j; i < j + 8; i += 2) {
            quant_values_pair(type, rows, row + i, at, w, i, sums[(i - j) / 2 % 2]);
        }
    }
    __m512i sum[2][4];
    for (int r = 0; r < rows; r++) {
        sum[0][r] = _mm512_add_epi32(sums[0][0][r], sums[1][0][r]);
        sum[1][r] = _mm512_add_epi32(sums[0][1][r], sums[1][1][r]);
    }
    const __m512i even = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i odd  = _mm512_add_epi32(even, _mm512_set1_epi32(8));
    for (int r = 0; r < rows; r++, acc += x.dv) {
        __m512i a = sum[0][r], b = sum[1][r];
        if (!quant_nibbles(type)) {
            a = _mm512_permutex2var_epi32(sum[0][r], even, b);
            b = _mm512_permutex2var_epi32(sum[0][r], odd, b);
        } else { /* nibbles are 8 too large */
            const __m512i minus = _mm512_set1_epi16(-8);
            const __m512i y     = _mm512_dpwssd_epi32(
                _mm512_madd_epi16(_mm512_loadu_si512(w[r]), minus), _mm512_loadu_si512(w[r] + 32), minus);
            const __m512i start = _mm512_set1_epi32(_mm512_reduce_add_epi32(y));
            a                   = _mm512_add_epi32(_mm512_sub_epi32(a, _mm512_slli_epi32(b, 4)), start);
            b                   = _mm512_add_epi32(b, start);
        }
        const vf f  = vf_set1(unit[r]);
        vf       x0 = vf_load(acc), x1 = vf_load(acc + 16);
        if (block_has_min(type)) {
            const vf more = vf_set1(weights->more[block % 4][r]);
            x0            = vf_add(x0, more);
            x1            = vf_add(x1, more);
        }
        vf_store(acc, vf_fma(_mm512_cvtepi32_ps(a), f, x0));
        vf_store(acc + 16, vf_fma(_mm512_cvtepi32_ps(b), f, x1));
    }
}

/* Probabilities over the largest of their row, and these. */
struct quant_normal {
    const float * p;    /* [rows][NARROW_BLOCK] */
    const float * most; /* [rows] */
};

/* The weights of m blocks, from block b on. */
PLONG_INLINE void quant_weigh(
    const int32_t type, const int rows, int b, int m, const struct quant_rows * v, const struct quant_normal normal,
    struct quant_weights * out) {
    vf           scale[4][4], offset[4][4]; /* [16 keys each][block] */
    const size_t at = v->at + quant_block(type, b);
    for (int i = 0; i < 4; i++) {
        quant_lines(type, v->row + 16 * i, at, m, scale[i], offset[i]);
    }
    for (int j = 0; j < m; j++) {
        const vf    each[4] = { scale[0][j], scale[1][j], scale[2][j], scale[3][j] };
        const float largest = quant_most((const float *) each, NARROW_BLOCK);
        const vf    f       = vf_set1(largest > 1e-30f ? QUANT_ONE / largest : 0.0f);
        for (int i = 0; i < 4; i += 2) {
            const vf lo = vf_mul(scale[i][j], f), hi = vf_mul(scale[i + 1][j], f);
            for (int r = 0; r < rows; r++) {
                const float * x = normal.p + r * NARROW_BLOCK + 16 * i;
                const __m512i y = quant_int16(vf_mul(vf_load(x), lo), vf_mul(vf_load(x + 16), hi));
                _mm512_storeu_si512(out->w[j][r] + 16 * i, y);
            }
        }
        for (int r = 0; r < rows; r++) {
            out->unit[j][r] = normal.most[r] * largest / QUANT_ONE;
            if (block_has_min(type)) {
                const vf all[4] = { offset[0][j], offset[1][j], offset[2][j], offset[3][j] };
                out->more[j][r] = normal.most[r] * quant_offsets(normal.p + r * NARROW_BLOCK, all);
            }
        }
    }
}

PLONG_INLINE void quant_values_of(
    const int32_t type, const int rows, const int nb, const struct quant_rows * v, const float * most,
    struct values_out x, struct prefetch_queue * ahead) {
    struct quant_weights weights;
    for (int b = 0; b < nb; b++) {
        const int n = NARROW_BLOCK * (b + 1) / nb - NARROW_BLOCK * b / nb;
        if (b % 4 == 0) {
            quant_weigh(type, rows, b, nb - b < 4 ? nb - b : 4, v, (struct quant_normal) { x.p, most }, &weights);
        }
        quant_values_block(type, rows, v, b, &weights, x, (struct prefetch_share) { ahead, n });
    }
}

/* acc += p * v; p is changed. */
static void quant_values(
    const struct quant_rows * v, int rows, int d, struct values_out x, struct prefetch_queue * ahead) {
    float most[PLONG_NARROW];
    for (int r = 0; r < rows; r++) {
        most[r] = quant_normalize(x.p + r * NARROW_BLOCK);
    }
    for (int r = 0, step; r < rows; r += step) {
        step = quant_step(rows - r);
        QUANT_FOR_TYPE(quant_values_of, v->type, step, d / 32, v, most + r, values_from(x, r), ahead)
    }
}

#endif
