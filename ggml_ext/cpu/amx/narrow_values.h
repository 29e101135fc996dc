/* narrow_values.h - P*V of a few query rows against quantized values. */
#ifndef PLONG_CPU_AMX_NARROW_VALUES_H
#define PLONG_CPU_AMX_NARROW_VALUES_H

#include "cpu/amx/narrow.h"

#define QUADS (NARROW_BLOCK / 4) /* of keys */

/* A block of 32 dims: V as two tiles of 16 dims each, the probabilities as a tile for each group of rows */
struct quant_work {
    _Alignas(64) int8_t v[2][QUADS][64];                              /* [dim][4 keys] */
    _Alignas(64) int8_t w[QUANT_GROUP][2 * QUANT_ROWS][NARROW_BLOCK]; /* row, digit; keys in the order of quant_key() */
    _Alignas(64) int32_t sum[QUANT_GROUP][2][2 * QUANT_ROWS][16];
    float unit;               /* the largest scale of the block, over QUANT_ONE */
    float more[PLONG_NARROW]; /* what offsets add to each dim of a row, over the row's largest probability */
};

/* The j-th key of quad k + i, k a multiple of 4 and i < 4, in the order in which quant_weigh() leaves them */
PLONG_INLINE int quant_key(int k, const int i, const int j) { return k + i / 2 * 16 + i % 2 * 2 + j % 2 * 32 + j / 2; }

/* Transposes x[4], rows of bytes, so that 4 bytes of the same place are side by side */
PLONG_INLINE void quant_transpose_bytes(__m512i * x) {
    const __m512i a01 = _mm512_unpacklo_epi8(x[0], x[1]), b01 = _mm512_unpackhi_epi8(x[0], x[1]);
    const __m512i a23 = _mm512_unpacklo_epi8(x[2], x[3]), b23 = _mm512_unpackhi_epi8(x[2], x[3]);
    x[0] = _mm512_unpacklo_epi16(a01, a23);
    x[1] = _mm512_unpackhi_epi16(a01, a23);
    x[2] = _mm512_unpacklo_epi16(b01, b23);
    x[3] = _mm512_unpackhi_epi16(b01, b23);
}

PLONG_INLINE void quant_store_halves(int8_t * a, int8_t * b, __m512i x) {
    _mm256_store_si256((__m256i *) a, _mm512_castsi512_si256(x));
    _mm256_store_si256((__m256i *) b, _mm512_extracti64x4_epi64(x, 1));
}

/* Two quads of keys at a time. Dims 0-3 16-19 4-7 20-23, then 8-11 24-27 12-15 28-31. */
PLONG_INLINE void quant_values_q8(
    const int32_t type, const char * const * row, size_t at, struct quant_work * out, struct prefetch_share share) {
    for (int k = 0; k < QUADS; k += 4) {
        quant_prefetch(share.ahead, share.n, k / 4, QUADS / 4);
#pragma GCC unroll 2
        for (int i = 0; i < 4; i += 2) {
            __m512i x[4];
            for (int j = 0; j < 4; j++) {
                x[j] = quant_two(type, row[quant_key(k, i, j)], row[quant_key(k, i + 1, j)], at);
            }
            quant_transpose_bytes(x);
            for (int j = 0; j < 4; j++) {
                int8_t * to = out->v[j / 2][k + i] + 32 * (j % 2);
                quant_store_halves(to, to + 64, x[j]);
            }
        }
    }
}

/* Four quads of keys at a time. Dims 0-15, then 16-31 */
PLONG_INLINE void quant_values_q4(
    const char * const * row, size_t at, struct quant_work * out, struct prefetch_share share) {
    const __m512i first_two = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i last_two  = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    for (int i = 0; i < 4; i++) {
        __m512i x[4];
        quant_prefetch(share.ahead, share.n, i, 4);
        for (int j = 0; j < 4; j++) { /* quads i, i + 4, i + 8, i + 12 */
            x[j] = quant_four(row + quant_key(0, i, j), 4, at);
        }
        quant_transpose_bytes(x);
        for (int j = 0; j < 2; j++) { /* lanes of one quad of keys, then of the next */
            const __m512i a = _mm512_permutex2var_epi64(x[2 * j], first_two, x[2 * j + 1]);
            const __m512i b = _mm512_permutex2var_epi64(x[2 * j], last_two, x[2 * j + 1]);
            quant_store_halves(out->v[0][i] + 32 * j, out->v[0][i + 4] + 32 * j, quant_low_nibbles(a));
            quant_store_halves(out->v[0][i + 8] + 32 * j, out->v[0][i + 12] + 32 * j, quant_low_nibbles(b));
            quant_store_halves(out->v[1][i] + 32 * j, out->v[1][i + 4] + 32 * j, quant_high_nibbles(a));
            quant_store_halves(out->v[1][i + 8] + 32 * j, out->v[1][i + 12] + 32 * j, quant_high_nibbles(b));
        }
    }
}

/* a where `which` has ones, b where it has none */
PLONG_INLINE __m512i quant_bits(__m512i which, __m512i a, __m512i b) {
    return _mm512_ternarylogic_epi32(which, a, b, 0xca);
}

/* The digits of p[64] times scale, at most QUANT_ONE: w[2][64] */
PLONG_INLINE void quant_weigh(const float * p, const vf * scale, int8_t (*w)[NARROW_BLOCK]) {
    const __m512i half = _mm512_set1_epi16(128), low = _mm512_set1_epi16(255);
    __m512i       x[4];
    for (int i = 0; i < 4; i++) {
        x[i] = _mm512_cvtps_epi32(vf_mul(vf_load(p + 16 * i), scale[i]));
    }
    const __m512i a = _mm512_packs_epi32(x[0], x[1]), b = _mm512_packs_epi32(x[2], x[3]);
    const __m512i above = _mm512_add_epi16(b, half), below = _mm512_srli_epi16(_mm512_add_epi16(a, half), 8);
    _mm512_store_si512(w[0], quant_bits(low, a, _mm512_slli_epi16(b, 8)));
    _mm512_store_si512(w[1], quant_bits(low, below, above));
}

PLONG_INLINE void quant_products(struct quant_work * w, int group) {
    _tile_zero(V_SUMS);
    _tile_zero(V_SUMS_2);
    _tile_loadd(V_WEIGHTS, w->w[group], NARROW_BLOCK);
    _tile_loadd(V_VALUES, w->v[0], 64);
    _tile_dpbssd(V_SUMS, V_WEIGHTS, V_VALUES);
    _tile_loadd(V_VALUES, w->v[1], 64);
    _tile_dpbssd(V_SUMS_2, V_WEIGHTS, V_VALUES);
    _tile_stored(V_SUMS, w->sum[group][0], 64);
    _tile_stored(V_SUMS_2, w->sum[group][1], 64);
}

/* acc[rows][dv] += 32 dims of a group's rows. most[r]: the row's largest probability */
PLONG_INLINE void quant_add(
    const int32_t type, const int rows, const struct quant_work * w, int group, const float * most, float * acc,
    int dv) {
    const int32_t (*sum)[2 * QUANT_ROWS][16] = w->sum[group];
    for (int r = 0; r < rows; r++, acc += dv) {
        const vf   f = vf_mul(vf_set1(most[r]), vf_set1(w->unit));
        const vf   x = quant_sum(sum[0][2 * r], sum[0][2 * r + 1]), y = quant_sum(sum[1][2 * r], sum[1][2 * r + 1]);
        const bool mixed = quant_as_bytes(type);
        const vf   a = mixed ? _mm512_shuffle_f32x4(x, y, 0x88) : x, b = mixed ? _mm512_shuffle_f32x4(x, y, 0xdd) : y;
        vf         x0 = vf_load(acc), x1 = vf_load(acc + 16);
        if (block_has_min(type)) {
            const vf more = vf_set1(most[r] * w->more[group * QUANT_ROWS + r]);
            x0            = vf_add(x0, more);
            x1            = vf_add(x1, more);
        }
        vf_store(acc, vf_fma(a, f, x0));
        vf_store(acc + 16, vf_fma(b, f, x1));
    }
}

/* scale, offset [4 blocks][16 keys each], of m blocks from b on */
PLONG_INLINE void quant_values_scales(
    const int32_t type, const struct quant_rows * v, int b, int m, vf (*scale)[4], vf (*offset)[4]) {
    const size_t at = v->at + quant_block(type, b);
    for (int i = 0; i < 4; i++) {
        const char * const * row = v->row + 16 * i;
        vf                   x[4], y[4];
        if (!quant_as_bytes(type)) {
            quant_scales_q4(row, at, m, x);
        }
        for (int j = 0; j < m; j++) {
            if (quant_as_bytes(type) && j % 2 == 0) {
                quant_scales_q8(type, row, at + quant_block(type, j), j + 1 < m, x + j);
                quant_offsets_q8(type, row, at + quant_block(type, j), j + 1 < m, x + j, y + j);
            }
            scale[j][i] = x[j];
            if (block_has_min(type)) {
                offset[j][i] = y[j];
            }
        }
    }
}

/* Writes the probabilities of a block as tiles. scale[4], offset[4]: of the block, 16 keys each */
PLONG_INLINE void quant_fill_weights(
    const int32_t type, vf * scale, const vf * offset, const float * p, int rows, struct quant_work * w) {
    const float largest = quant_most((const float *) scale, NARROW_BLOCK);
    const vf    f       = vf_set1(largest > 1e-30f ? QUANT_ONE / largest : 0.0f);
    w->unit             = largest / (quant_as_bytes(type) ? QUANT_ONE : QUANT_ONE * QUANT_NIBBLE);
    for (int i = 0; i < 4; i++) {
        scale[i] = vf_mul(scale[i], f);
    }
    for (int r = 0; r < rows; r++) {
        quant_weigh(p + r * NARROW_BLOCK, scale, w->w[r / QUANT_ROWS] + 2 * (r % QUANT_ROWS));
        if (block_has_min(type)) {
            w->more[r] = quant_offsets(p + r * NARROW_BLOCK, offset);
        }
    }
}

PLONG_INLINE void quant_fill_values(
    const int32_t type, const struct quant_rows * v, int b, struct quant_work * w, struct prefetch_share share) {
    const size_t at = v->at + quant_at(type, b);
    if (quant_as_bytes(type)) {
        quant_values_q8(type, v->row, at, w, share);
    } else {
        quant_values_q4(v->row, at, w, share);
    }
}

/* Fills one block's tiles while those of the previous one are multiplied, with other work between storing parts or
 * tiles and loading them, as in narrow_logits.h. nb: blocks of a row */
PLONG_INLINE void quant_values_of(
    const int32_t type, const struct quant_rows * v, int rows, int nb, struct values_out x,
    struct prefetch_queue * ahead) {
    struct quant_work work[2];
    vf                scale[4][4], offset[4][4]; /* [block][16 keys each] */
    float             most[PLONG_NARROW];
    for (int r = 0; r < rows; r++) {
        most[r] = quant_normalize(x.p + r * NARROW_BLOCK);
    }
    for (int b = 0; b <= nb; b++) {
        struct quant_work *now = &work[b % 2], *before = &work[(b + 1) % 2];
        if (b < nb) {
            if (b % 4 == 0) {
                quant_values_scales(type, v, b, nb - b < 4 ? nb - b : 4, scale, offset);
            }
            quant_fill_weights(type, scale[b % 4], offset[b % 4], x.p, rows, now);
        }
        QUANT_STORED();
        for (int g = 0; b > 0 && g * QUANT_ROWS < rows; g++) {
            quant_products(before, g);
        }
        if (b < nb) {
            const int n = NARROW_BLOCK * (b + 1) / nb - NARROW_BLOCK * b / nb;
            quant_fill_values(type, v, b, now, (struct prefetch_share) { ahead, n });
        }
        for (int r = 0; b > 0 && r < rows; r += QUANT_ROWS) {
            float * to = x.acc + (size_t) r * x.dv + 32 * (b - 1);
            if (rows - r >= QUANT_ROWS) {
                quant_add(type, QUANT_ROWS, before, r / QUANT_ROWS, most + r, to, x.dv);
            } else {
                quant_add(type, rows - r, before, r / QUANT_ROWS, most + r, to, x.dv);
            }
        }
    }
}

/* acc += p * v; p is changed. */
static void quant_values(
    const struct quant_rows * v, int rows, int d, struct values_out x, struct prefetch_queue * ahead) {
    if (rows == QUANT_ROWS && d == 128) {
        QUANT_FOR_TYPE(quant_values_of, v->type, v, QUANT_ROWS, 4, x, ahead)
    } else {
        QUANT_FOR_TYPE(quant_values_of, v->type, v, rows, d / 32, x, ahead)
    }
}

#endif
