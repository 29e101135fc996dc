/*
 * few_tiles_keys.h - logits of a few query rows against q8_0 or q4_0 keys. q8_0: keys are the rows of a tile, read from the
 * cache as they lie. q4_0: unpacked, keys are the columns, 4 dims of each side by side.
 */
#ifndef PLONG_CPU_FEW_TILES_KEYS_H
#define PLONG_CPU_FEW_TILES_KEYS_H

#include "few_tiles.h"

/* Bytes of the digits of a group's queries, and of all groups' with their weights: quant_queries() */
static size_t quant_group_size(int d) { return (size_t) ((d / 32 + 1) / 2) * 1024; }
static size_t quant_size(int d) { return QUANT_GROUP * (quant_group_size(d) + 64); }

static float * quant_weights(uint8_t * digits, int d, int group) {
    return (float *) (digits + QUANT_GROUP * quant_group_size(d) + 64 * (size_t) group);
}

/* Where the digit of a row goes for 4 dims. q8_0: a tile of 32 bytes per row for each block, [8 quads of dims][row, digit].
 * q4_0: a tile for two blocks, [block, row, digit][64 dims], 0 where the dims are the other block's. */
static uint8_t * quant_place(int32_t type, uint8_t * group, int dim, int row, int digit) {
    const int b = dim / 32, column = 2 * row + digit;
    if (type == GGML_TYPE_Q8_0) {
        return group + 256 * b + dim % 32 / 4 * 32 + 4 * column;
    }
    return group + b / 2 * 1024 + (b % 2 * 8 + column) * 64 + dim % 64;
}

/* q [rows][dq], rows <= PLONG_FEW, as digits, and as weights what a digit's unit is worth in a logit per unit of K */
static void quant_queries(int32_t type, const float * q, int rows, int dq, int d, uint8_t * out) {
    const float unit = type == GGML_TYPE_Q8_0 ? QUANT_ONE : QUANT_ONE * QUANT_NIBBLE;
    memset(out, 0, quant_size(d));
    for (int r = 0; r < rows; r++, q += dq) {
        uint8_t *   group                                     = out + (size_t) (r / QUANT_ROWS) * quant_group_size(d);
        const float max                                       = quant_most(q, d);
        const vf    inv                                       = vf_set1(max > 1e-30f ? QUANT_ONE / max : 0.0f);
        quant_weights(out, d, r / QUANT_ROWS)[r % QUANT_ROWS] = max / unit;
        for (int i = 0; i < d; i += 16) {
            int32_t       lo[4], hi[4]; /* four dims each */
            const __m512i y = quant_digits(_mm512_cvtps_epi32(vf_mul(vf_load(q + i), inv)));
            _mm_storeu_si128((__m128i *) lo, _mm512_cvtepi32_epi8(y));
            _mm_storeu_si128((__m128i *) hi, _mm512_cvtepi32_epi8(_mm512_srli_epi32(y, 8)));
            for (int j = 0; j < 4; j++) {
                memcpy(quant_place(type, group, i + 4 * j, r % QUANT_ROWS, 0), &lo[j], 4);
                memcpy(quant_place(type, group, i + 4 * j, r % QUANT_ROWS, 1), &hi[j], 4);
            }
        }
    }
}

/* Up to 4 blocks of 16 keys, and what they come to with the queries of each group */
struct quant_keys {
    _Alignas(64) int8_t value[16 * 4 * 32]; /* q8_0: [key][block][32], where it is used; q4_0: [block][quad][key][4] */
    _Alignas(64) int32_t sum[QUANT_GROUP][512]; /* q8_0: [block][key][row, digit]; q4_0: [block][row, digit][key] */
    vf scale[4];
};

PLONG_INLINE void quant_load_q8(struct quant_keys * k, const char * const * row, int b, int m) {
    for (int j = 0; j < 16; j++) {
        for (int i = 0; i < m; i++) {
            const char * x = row[j] + quant_at(GGML_TYPE_Q8_0, b + i);
            _mm256_store_si256((__m256i *) (k->value + 32 * (4 * j + i)), _mm256_loadu_si256((const __m256i *) x));
        }
    }
}

PLONG_INLINE void quant_load_q4(struct quant_keys * k, const char * const * row, int b, int m) {
    for (int i = 0; i < m; i++) {
        const size_t at  = quant_at(GGML_TYPE_Q4_0, b + i);
        int8_t *     out = k->value + 512 * i;
        __m512i      x[4];
        for (int j = 0; j < 4; j++) {
            x[j] = quant_four(row + j, 4, at);
        }
        quant_turn_words(x);
        for (int g = 0; g < 4; g++) {
            _mm512_store_si512(out + 64 * g, quant_low_nibbles(x[g]));
            _mm512_store_si512(out + 64 * (4 + g), quant_high_nibbles(x[g]));
        }
    }
}

/* A group's sums for m blocks of 16 keys: those of q8_0 lie at `first`, by these distances */
PLONG_INLINE void quant_dots_q8(
    struct quant_keys * k, const char * first, size_t row, size_t block, const uint8_t * q, int m, int group) {
    int32_t * sum = k->sum[group];
#define QUANT_DOT(i, c)                              \
    if (i < m) {                                     \
        _tile_zero(c);                               \
        _tile_loadd(K_KEYS, first + block * i, row); \
        _tile_loadd(K_QUERIES, q + 256 * i, 32);     \
        _tile_dpbssd(c, K_KEYS, K_QUERIES);          \
        _tile_stored(c, sum + 128 * i, 32);          \
    }
    QUANT_DOT(0, K_SUMS)
    QUANT_DOT(1, K_SUMS_2)
    QUANT_DOT(2, K_SUMS)
    QUANT_DOT(3, K_SUMS_2)
#undef QUANT_DOT
}

PLONG_INLINE void quant_dots_q4(struct quant_keys * k, const uint8_t * q, int m, int group) {
#define QUANT_DOT(i, c)                               \
    if (2 * i < m) {                                  \
        _tile_zero(c);                                \
        _tile_loadd(K_QUERIES, q + 1024 * i, 64);     \
        _tile_loadd(K_KEYS, k->value + 1024 * i, 64); \
        _tile_dpbssd(c, K_QUERIES, K_KEYS);           \
        _tile_stored(c, k->sum[group] + 256 * i, 64); \
    }
    QUANT_DOT(0, K_SUMS)
    QUANT_DOT(1, K_SUMS_2)
#undef QUANT_DOT
}

/* s[rows][FEW_BLOCK] = or += the sums times their scales, rows <= QUANT_ROWS. Two keys are a vector: [key][row, digit] */
PLONG_INLINE void quant_finish_q8(
    const int rows, const struct quant_keys * k, const int32_t * from, int m, const float * weight, bool more,
    float * s) {
    vf sum[8], even[2], odd[2];
    for (int i = 0; i < 8; i++) {
        sum[i] = vf_zero();
    }
    for (int b = 0; b < m; b++) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            const __m512i two = _mm512_mask_set1_epi32(_mm512_set1_epi32(2 * i), 0xff00, 2 * i + 1);
            const vf      x   = _mm512_cvtepi32_ps(_mm512_load_si512(from + 128 * b + 16 * i));
            sum[i]            = vf_fma(x, _mm512_permutexvar_ps(two, k->scale[b]), sum[i]);
        }
    }
    for (int i = 0; i < 2; i++) { /* digits together, then rows 0 and 2, and 1 and 3, apart */
        vf x[2];
        for (int j = 0; j < 2; j++) {
            const vf a = sum[4 * i + 2 * j], b = sum[4 * i + 2 * j + 1];
            x[j] = vf_fma(_mm512_shuffle_ps(a, b, 0xdd), vf_set1(256.0f), _mm512_shuffle_ps(a, b, 0x88));
        }
        even[i] = _mm512_shuffle_ps(x[0], x[1], 0x88);
        odd[i]  = _mm512_shuffle_ps(x[0], x[1], 0xdd);
    }
    const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    for (int r = 0; r < rows; r++, s += FEW_BLOCK) {
        const vf * x = r % 2 ? odd : even;
        const vf   y = r < 2 ? _mm512_shuffle_f32x4(x[0], x[1], 0x88) : _mm512_shuffle_f32x4(x[0], x[1], 0xdd);
        vf_store(s, vf_fma(_mm512_permutexvar_ps(order, y), vf_set1(weight[r]), more ? vf_load(s) : vf_zero()));
    }
}

PLONG_INLINE void quant_finish_q4(
    const int rows, const struct quant_keys * k, const int32_t * from, int m, const float * weight, bool more,
    float * s) {
    for (int r = 0; r < rows; r++, s += FEW_BLOCK) {
        vf sum = vf_zero();
        for (int b = 0; b < m; b++) {
            const int32_t * x = from + 128 * b + 32 * r;
            sum               = vf_fma(quant_sum(x, x + 16), k->scale[b], sum);
        }
        vf_store(s, vf_fma(sum, vf_set1(weight[r]), more ? vf_load(s) : vf_zero()));
    }
}

/* A step's keys, 16 of them, and its blocks, up to 4 */
struct quant_step {
    int key, block, m;
};

PLONG_INLINE struct quant_step quant_step(int i, int nb) {
    const int parts = (nb + 3) / 4, b = i % parts * 4;
    return (struct quant_step) { i / parts * 16, b, nb - b < 4 ? nb - b : 4 };
}

PLONG_INLINE void quant_load(
    const int32_t type, struct quant_keys * k, const struct quant_rows * x, struct quant_step at,
    const uint8_t * digits, int groups, int d) {
    const char * const * row = x->row + at.key;
    quant_scales(type, row, at.block, at.m, k->scale);
    if (type == GGML_TYPE_Q4_0) {
        quant_load_q4(k, row, at.block, at.m);
        return;
    }
    if (!x->step) {
        quant_load_q8(k, row, at.block, at.m);
    }
    const char * cached = row[0] + quant_at(GGML_TYPE_Q8_0, at.block);
    for (int g = 0; g < groups; g++) {
        const uint8_t * q = digits + (size_t) g * quant_group_size(d) + 256 * at.block;
        if (x->step) {
            quant_dots_q8(k, cached, (size_t) x->step, sizeof(struct q8_block), q, at.m, g);
        } else {
            quant_dots_q8(k, (const char *) k->value, 128, 32, q, at.m, g);
        }
    }
}

PLONG_INLINE void quant_finish(
    const int32_t type, const int rows, struct quant_keys * k, struct quant_step at, uint8_t * digits, int group, int d,
    float * s) {
    const float * weight = quant_weights(digits, d, group);
    if (type == GGML_TYPE_Q4_0) {
        quant_dots_q4(k, digits + (size_t) group * quant_group_size(d) + 512 * at.block, at.m, group);
        quant_finish_q4(rows, k, k->sum[group], at.m, weight, at.block > 0, s + at.key);
    } else {
        quant_finish_q8(rows, k, k->sum[group], at.m, weight, at.block > 0, s + at.key);
    }
}

PLONG_INLINE void quant_logits_of(
    const int32_t type, const struct quant_rows * x, uint8_t * digits, int rows, int d, float * s,
    struct few_ahead * ahead) {
    const int nb = d / 32, steps = (x->n + 15) / 16 * ((nb + 3) / 4), groups = (rows + QUANT_ROWS - 1) / QUANT_ROWS;
    struct quant_keys keys[2];
    for (int i = 0; i <= steps; i++) { /* one step is loaded while the one before is finished: what was just stored as
                                          parts cannot be loaded at once */
        if (i < steps) {
            const struct quant_step at = quant_step(i, nb);
            for (int j = at.key + 16; at.block == 0 && j < at.key + 32 && j < x->n; j++) {
                few_near(x->row[j], nb * (int) few_quant_bytes(type));
            }
            quant_ask(ahead, 16, at.block / 4, (nb + 3) / 4);
            quant_load(type, &keys[i % 2], x, at, digits, groups, d);
        }
        for (int g = 0; g < groups && i > 0; g++) {
            float * const           to   = s + (size_t) g * QUANT_ROWS * FEW_BLOCK;
            const struct quant_step at   = quant_step(i - 1, nb);
            const int               left = rows - g * QUANT_ROWS;
            if (left >= QUANT_ROWS) {
                quant_finish(type, QUANT_ROWS, &keys[(i + 1) % 2], at, digits, g, d, to);
            } else {
                quant_finish(type, left, &keys[(i + 1) % 2], at, digits, g, d, to);
            }
        }
    }
}

/* s[rows][FEW_BLOCK] for the keys, padded to 16. */
static void quant_logits(
    const struct quant_rows * x, uint8_t * digits, int rows, int d, float * s, struct few_ahead * ahead) {
    const bool usual = rows == QUANT_ROWS && d == 128;
    if (x->type == GGML_TYPE_Q8_0) {
        if (usual) {
            quant_logits_of(GGML_TYPE_Q8_0, x, digits, QUANT_ROWS, 128, s, ahead);
        } else {
            quant_logits_of(GGML_TYPE_Q8_0, x, digits, rows, d, s, ahead);
        }
    } else if (usual) {
        quant_logits_of(GGML_TYPE_Q4_0, x, digits, QUANT_ROWS, 128, s, ahead);
    } else {
        quant_logits_of(GGML_TYPE_Q4_0, x, digits, rows, d, s, ahead);
    }
}

#endif
