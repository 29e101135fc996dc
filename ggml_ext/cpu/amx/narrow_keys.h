/*
 * narrow_keys.h - quantized keys as tiles, and their products with a few query rows. q8_0: keys are the rows of a
 * tile, read from the cache as they are stored. q4_0: keys are unpacked and are the columns, 4 dims of each side by
 * side. The others are unpacked to what q8_0's would be.
 */
#ifndef PLONG_CPU_AMX_NARROW_KEYS_H
#define PLONG_CPU_AMX_NARROW_KEYS_H

#include "cpu/amx/narrow.h"

/* Bytes of the digits of a group's queries, of their sums, and of all groups' with their weights: quant_queries() */
static size_t quant_group_size(int d) { return (size_t) ((d / 32 + 1) / 2) * 1024; }
static size_t quant_sums_size(int d) { return ((size_t) (d / 32) * QUANT_ROWS * sizeof(float) + 63) & ~(size_t) 63; }
static size_t quant_size(int d) { return QUANT_GROUP * (quant_group_size(d) + 64 + quant_sums_size(d)); }

static float * quant_weights(uint8_t * digits, int d, int group) {
    return (float *) (digits + QUANT_GROUP * quant_group_size(d) + 64 * (size_t) group);
}

/* [d / 32][QUANT_ROWS] sums of a block's integers, for types with offsets */
static float * quant_sums(uint8_t * digits, int d, int group) {
    return (float *) (digits + QUANT_GROUP * (quant_group_size(d) + 64) + quant_sums_size(d) * (size_t) group);
}

/* The place of a row's digit for 4 dims. As bytes: a tile of 32 bytes per row for each block, [8 quads of dims][row,
 * digit]. q4_0: a tile for two blocks, [block, row, digit][64 dims], 0 where the dims belong to the other block. */
static uint8_t * quant_place(int32_t type, uint8_t * group, int dim, int row, int digit) {
    const int b = dim / 32, column = 2 * row + digit;
    if (quant_as_bytes(type)) {
        return group + 256 * b + dim % 32 / 4 * 32 + 4 * column;
    }
    return group + b / 2 * 1024 + (b % 2 * 8 + column) * 64 + dim % 64;
}

/* Splits q [rows][dq], rows <= PLONG_NARROW, into digits; a weight is the value of one unit of a digit in a logit, per
 * unit of K */
static void quant_queries(int32_t type, const float * q, int rows, int dq, int d, uint8_t * out) {
    const float unit = quant_as_bytes(type) ? QUANT_ONE : QUANT_ONE * QUANT_NIBBLE;
    memset(out, 0, quant_size(d));
    for (int r = 0; r < rows; r++, q += dq) {
        uint8_t *   group                                     = out + (size_t) (r / QUANT_ROWS) * quant_group_size(d);
        const float max                                       = quant_most(q, d);
        const vf    inv                                       = vf_set1(max > 1e-30f ? QUANT_ONE / max : 0.0f);
        quant_weights(out, d, r / QUANT_ROWS)[r % QUANT_ROWS] = max / unit;
        for (int i = 0; i < d; i += 16) {
            int32_t       lo[4], hi[4]; /* four dims each */
            const __m512i x = _mm512_cvtps_epi32(vf_mul(vf_load(q + i), inv)), y = quant_digits(x);
            if (block_has_min(type)) {
                float * sums = quant_sums(out, d, r / QUANT_ROWS);
                sums[i / 32 * QUANT_ROWS + r % QUANT_ROWS] += (float) _mm512_reduce_add_epi32(x);
            }
            _mm_storeu_si128((__m128i *) lo, _mm512_cvtepi32_epi8(y));
            _mm_storeu_si128((__m128i *) hi, _mm512_cvtepi32_epi8(_mm512_srli_epi32(y, 8)));
            for (int j = 0; j < 4; j++) {
                memcpy(quant_place(type, group, i + 4 * j, r % QUANT_ROWS, 0), &lo[j], 4);
                memcpy(quant_place(type, group, i + 4 * j, r % QUANT_ROWS, 1), &hi[j], 4);
            }
        }
    }
}

/* Up to 4 blocks of 16 keys, and their sums with the queries of each group */
struct quant_keys {
    _Alignas(64) int8_t value[16 * 4 * 32]; /* bytes: [key][block][32], where it is used; q4_0: [block][quad][key][4] */
    _Alignas(64) int32_t sum[QUANT_GROUP][512]; /* bytes: [block][key][row, digit]; q4_0: [block][row, digit][key] */
    vf scale[4], offset[4];
};

/* Bytes: block 0 of 16 keys, and the distances from key to key and from block to block in bytes */
struct quant_source {
    const char * first;
    size_t       key, block;
};

/* Gathers 16 keys that are not bytes at equal distances: m blocks, `at` bytes into each row */
PLONG_INLINE void quant_gather(const int32_t type, struct quant_keys * k, const char * const * row, size_t at, int m) {
    for (int j = 0; j < 16; j++) {
#pragma GCC unroll 2
        for (int i = 0; i < m; i += 2) { /* if there is no next block, this one again */
            const char * next = row[j] + (i + 1 < m ? block_bytes(type) : 0);
            _mm512_store_si512(k->value + 32 * (4 * j + i), quant_two(type, row[j], next, at + quant_at(type, i)));
        }
    }
}

#define QUANT_DOT(c, keys, key, queries, query, a, b, sum, stride) \
    _tile_zero(c);                                                 \
    _tile_loadd(K_KEYS, keys, key);                                \
    _tile_loadd(K_QUERIES, queries, query);                        \
    _tile_dpbssd(c, a, b);                                         \
    _tile_stored(c, sum, stride);

/* A group's products of block i of 16 keys. Successive blocks have their sums in different tiles. */
PLONG_INLINE void quant_dot_q8(const int i, struct quant_source k, const uint8_t * q, int32_t * sum) {
    if (i % 2 == 0) {
        QUANT_DOT(K_SUMS, k.first + k.block * i, k.key, q + 256 * i, 32, K_KEYS, K_QUERIES, sum + 128 * i, 32)
    } else {
        QUANT_DOT(K_SUMS_2, k.first + k.block * i, k.key, q + 256 * i, 32, K_KEYS, K_QUERIES, sum + 128 * i, 32)
    }
}

/* The same for blocks i and i + 1, i even */
PLONG_INLINE void quant_dot_q4(const int i, const struct quant_keys * k, const uint8_t * q, int32_t * sum) {
    if (i % 4 == 0) {
        QUANT_DOT(K_SUMS, k->value + 512 * i, 64, q + 512 * i, 64, K_QUERIES, K_KEYS, sum + 128 * i, 64)
    } else {
        QUANT_DOT(K_SUMS_2, k->value + 512 * i, 64, q + 512 * i, 64, K_QUERIES, K_KEYS, sum + 128 * i, 64)
    }
}
#undef QUANT_DOT

/* Block i of 16 keys as tiles, at `at` of each row */
PLONG_INLINE void quant_load_q4(struct quant_keys * k, const char * const * row, size_t at, int i) {
    int8_t * out = k->value + 512 * i;
    __m512i  x[4];
    for (int j = 0; j < 4; j++) {
        x[j] = quant_four(row + j, 4, at + quant_at(GGML_TYPE_Q4_0, i));
    }
    quant_transpose_words(x);
    for (int g = 0; g < 4; g++) {
        _mm512_store_si512(out + 64 * g, quant_low_nibbles(x[g]));
        _mm512_store_si512(out + 64 * (4 + g), quant_high_nibbles(x[g]));
    }
}

/* sum[8] += the sums of block b times their scales. Two keys are a vector: [key][row, digit] */
PLONG_INLINE void quant_scale_q8(const struct quant_keys * k, const int32_t * from, int b, vf * sum) {
    const vf scale = k->scale[b];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        const int     j = 2 * i, l = 2 * i + 1;
        const __m512i two = _mm512_setr_epi32(j, j, j, j, j, j, j, j, l, l, l, l, l, l, l, l);
        const vf      x   = _mm512_cvtepi32_ps(_mm512_load_si512(from + 128 * b + 16 * i));
        sum[i]            = vf_fma(x, _mm512_permutexvar_ps(two, scale), sum[i]);
    }
}

/* What else the products of some blocks need to become logits. */
struct quant_finish {
    const float * weight; /* quant_weights() */
    const float * sums;   /* quant_sums(), from the first of the blocks on */
    int           m;      /* blocks */
    bool          more;   /* they are added to the logits of earlier blocks */
};

/* s[rows][NARROW_BLOCK] = or += them, rows <= QUANT_ROWS */
PLONG_INLINE void quant_finish_q8(
    const int32_t type, const int rows, const struct quant_keys * k, const vf * sum, const struct quant_finish x,
    float * s) {
    vf even[2], odd[2];
    for (int i = 0; i < 2; i++) { /* combines the digits, then separates rows 0 and 2, and 1 and 3 */
        vf y[2];
        for (int j = 0; j < 2; j++) {
            const vf a = sum[4 * i + 2 * j], b = sum[4 * i + 2 * j + 1];
            y[j] = vf_fma(_mm512_shuffle_ps(a, b, 0xdd), vf_set1(256.0f), _mm512_shuffle_ps(a, b, 0x88));
        }
        even[i] = _mm512_shuffle_ps(y[0], y[1], 0x88);
        odd[i]  = _mm512_shuffle_ps(y[0], y[1], 0xdd);
    }
    const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    for (int r = 0; r < rows; r++, s += NARROW_BLOCK) {
        const vf * two = r % 2 ? odd : even;
        vf         y = r < 2 ? _mm512_shuffle_f32x4(two[0], two[1], 0x88) : _mm512_shuffle_f32x4(two[0], two[1], 0xdd);
        y            = _mm512_permutexvar_ps(order, y);
        for (int b = 0; b < x.m && block_has_min(type); b++) {
            y = vf_fma(k->offset[b], vf_set1(x.sums[b * QUANT_ROWS + r]), y);
        }
        vf_store(s, vf_fma(y, vf_set1(x.weight[r]), x.more ? vf_load(s) : vf_zero()));
    }
}

PLONG_INLINE void quant_finish_q4(
    const int rows, const struct quant_keys * k, const int32_t * from, int m, const float * weight, bool more,
    float * s) {
    for (int r = 0; r < rows; r++, s += NARROW_BLOCK) {
        vf sum = vf_zero();
        for (int b = 0; b < m; b++) {
            const int32_t * x = from + 128 * b + 32 * r;
            sum               = vf_fma(quant_sum(x, x + 16), k->scale[b], sum);
        }
        vf_store(s, vf_fma(sum, vf_set1(weight[r]), more ? vf_load(s) : vf_zero()));
    }
}

#endif
