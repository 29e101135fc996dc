/*
 * few_amx.h - logits of a few query rows against a q8_0 or q4_0 cache, in the cache's own integers: AMX int8 products,
 * exact in int32. Queries and probabilities become two signed bytes each, 15 bits and a sign per block, a
 * hundred times finer than the bf16 of wider tiles; rows x digits share a tile, where they cost nothing.
 */
#ifndef PLONG_CPU_FEW_AMX_H
#define PLONG_CPU_FEW_AMX_H

#include <stddef.h>

#include "blocks.h"

#define DIGITS     2
#define QUANT_ROWS 8        /* rows whose digits fit into the 16 rows, or columns, of a tile */
#define QUANT_ONE  16383.0f /* the largest value: its high digit stays below 64 */

_Static_assert(QUANT_ROWS >= PLONG_FEW, "all rows of a kv head go in one pass");

static inline bool quant_type(int32_t type) { return type == GGML_TYPE_Q8_0 || type == GGML_TYPE_Q4_0; }

/* Bytes of the queries of a kv head: quant_queries() */
static size_t quant_size(int d_k) { return (size_t) (d_k / 32) * 512 + 64; }

/* C tiles 0 .. 3; K (A) 4 and queries (B) 5; probabilities (A) 6 and V (B) 7 */
static void quant_config(void) {
    struct tile_config c = { .palette = 1 };
    for (int i = 0; i < 8; i++) {
        c.bytes[i] = i == 4 ? 32 : 64;
        c.rows[i]  = i == 5 ? 8 : 16;
    }
    __asm__ volatile("" : : "r"(&c) : "memory"); /* as in wide_enter() */
    _tile_loadconfig(&c);
}

/* The digits of x, |x| <= 16383, as bytes 0 and 1: x = d0 + 256 d1 */
static inline __m512i quant_digits(__m512i x) {
    const __m512i bias = _mm512_set1_epi32(0x8080);
    return _mm512_xor_si512(_mm512_add_epi32(x, bias), bias);
}

static inline vf vf_abs(vf x) { return _mm512_abs_ps(x); }

/* q [rows][dq] -> B tiles [d/32][8 quads of dims][16 columns][4], column 2 r + digit, then f32 weight[rows] */
static void quant_queries(const float * q, int rows, int dq, int d, uint8_t * out) {
    float * weight = (float *) (out + (size_t) (d / 32) * 512);
    memset(out, 0, (size_t) (d / 32) * 512);
    for (int r = 0; r < rows; r++, q += dq) {
        vf top = vf_zero();
        for (int i = 0; i < d; i += 16) {
            top = vf_max(top, vf_abs(vf_load(q + i)));
        }
        const float max = vf_hmax(top);
        const vf    inv = vf_set1(max > 1e-30f ? QUANT_ONE / max : 0.0f);
        weight[r]       = max / QUANT_ONE;
        for (int i = 0; i < d; i += 16) {
            int32_t       lo[4], hi[4]; /* four dims each */
            const __m512i y = quant_digits(_mm512_cvtps_epi32(vf_mul(vf_load(q + i), inv)));
            _mm_storeu_si128((__m128i *) lo, _mm512_cvtepi32_epi8(y));
            _mm_storeu_si128((__m128i *) hi, _mm512_cvtepi32_epi8(_mm512_srli_epi32(y, 8)));
            for (int j = 0; j < 4; j++) {
                uint8_t * at = out + (size_t) (i / 4 + j) * 64 + r * 8;
                memcpy(at, &lo[j], 4);
                memcpy(at + 4, &hi[j], 4);
            }
        }
    }
}

/* What stands for the rows of keys that are not there: blocks whose scale is 0 */
static const char quant_nothing[16 * sizeof(struct q8_block)];

/* Rows of keys in the cache, padded to FEW_BLOCK. step: bytes from each to the next, 0 where they differ */
struct quant_rows {
    int32_t      type, n, step;
    const char * row[FEW_BLOCK];
};

static inline int quant_bytes(int32_t type, int nb) {
    return nb * (int) (type == GGML_TYPE_Q8_0 ? sizeof(struct q8_block) : sizeof(struct q4_block));
}

static struct quant_rows quant_rows(const char * const * row, int n, int32_t step, size_t at, int32_t type) {
    struct quant_rows x = { .type = type, .n = n, .step = n == FEW_BLOCK ? step : 0 };
    for (int j = 0; j < FEW_BLOCK; j++) {
        x.row[j] = j < n ? row[j] + at : quant_nothing;
    }
    return x;
}

/* Block b of a row as 32 int8 */
PLONG_INLINE __m256i quant_block(const int32_t type, const char * row, int b) {
    if (type == GGML_TYPE_Q8_0) {
        return _mm256_loadu_si256((const __m256i *) ((const struct q8_block *) row)[b].q);
    }
    const __m128i q = _mm_loadu_si128((const __m128i *) ((const struct q4_block *) row)[b].q);
    const __m256i v = _mm256_inserti128_si256(_mm256_castsi128_si256(q), _mm_srli_epi16(q, 4), 1);
    return _mm256_sub_epi8(_mm256_and_si256(v, _mm256_set1_epi8(15)), _mm256_set1_epi8(8));
}

PLONG_INLINE uint64_t quant_four_scales(const char * const * row, size_t at) {
    uint16_t x[4];
    for (int j = 0; j < 4; j++) {
        memcpy(&x[j], row[j] + at, sizeof(x[j]));
    }
    return x[0] | (uint64_t) x[1] << 16 | (uint64_t) x[2] << 32 | (uint64_t) x[3] << 48;
}

/* f32 scales of block b of n rows, n a multiple of 16. They are put together in registers: a vector cannot be loaded right
 * after its parts were stored. */
PLONG_INLINE void quant_scales(const int32_t type, const char * const * row, int n, int b, float * scale) {
    const size_t at = (size_t) b * (type == GGML_TYPE_Q8_0 ? sizeof(struct q8_block) : sizeof(struct q4_block));
    for (int j = 0; j < n; j += 16) {
        const __m256i x = _mm256_set_epi64x(
            (long long) quant_four_scales(row + j + 12, at), (long long) quant_four_scales(row + j + 8, at),
            (long long) quant_four_scales(row + j + 4, at), (long long) quant_four_scales(row + j, at));
        vf_store(scale + j, _mm512_cvtph_ps(x));
    }
}

/* 16 rows as int8, and their scales [nb][16] */
struct quant_keys {
    _Alignas(64) int8_t value[16 * 512];
    float        scale[16 * 16];
    const char * first; /* int8 of row 0: in value, or in the cache itself */
    size_t       row;   /* bytes from row to row */
    size_t       block; /* bytes from block to block of a row */
};

PLONG_INLINE void quant_load_of(
    const int32_t type, struct quant_keys * k, const char * const * row, int32_t step, const int nb) {
    for (int b = 0; b < nb; b++) {
        quant_scales(type, row, 16, b, k->scale + 16 * b);
    }
    if (type == GGML_TYPE_Q8_0 && step > 0) { /* a tile's rows may lie anywhere at equal distances */
        k->first = row[0] + offsetof(struct q8_block, q);
        k->row   = (size_t) step;
        k->block = sizeof(struct q8_block);
        return;
    }
    k->first = (const char *) k->value;
    k->row   = (size_t) nb * 32;
    k->block = 32;
    for (int j = 0; j < 16; j++) {
        for (int b = 0; b < nb; b++) {
            _mm256_store_si256((__m256i *) (k->value + 32 * (j * nb + b)), quant_block(type, row[j], b));
        }
    }
}

static void quant_load(struct quant_keys * k, const struct quant_rows * x, int j, int nb) {
    if (x->type == GGML_TYPE_Q8_0) {
        if (nb == 4) {
            quant_load_of(GGML_TYPE_Q8_0, k, x->row + j, x->step, 4);
        } else {
            quant_load_of(GGML_TYPE_Q8_0, k, x->row + j, x->step, nb);
        }
    } else if (nb == 4) {
        quant_load_of(GGML_TYPE_Q4_0, k, x->row + j, x->step, 4);
    } else {
        quant_load_of(GGML_TYPE_Q4_0, k, x->row + j, x->step, nb);
    }
}

/* Sums of 16 keys by 16 columns for blocks b0 .. b0 + m of 32 dims, m <= 4 */
PLONG_INLINE void quant_dots(const struct quant_keys * k, int b0, const uint8_t * q, int m, int32_t (*c)[256]) {
    const char * first = k->first + k->block * (size_t) b0;
#define QUANT_DOT(i)                                  \
    if (i < m) {                                      \
        _tile_zero(i);                                \
        _tile_loadd(4, first + k->block * i, k->row); \
        _tile_loadd(5, q + 512 * (b0 + i), 64);       \
        _tile_dpbssd(i, 4, 5);                        \
    }
#define QUANT_STORE(i)             \
    if (i < m) {                   \
        _tile_stored(i, c[i], 64); \
    }
    QUANT_DOT(0)
    QUANT_DOT(1)
    QUANT_DOT(2)
    QUANT_DOT(3)
    QUANT_STORE(0)
    QUANT_STORE(1)
    QUANT_STORE(2)
    QUANT_STORE(3)
}

/* s[rows][FEW_BLOCK] for the keys, padded to 16. The next 16 are unpacked before these are multiplied: a tile that was just
 * stored cannot be loaded at once. */
static void quant_logits(
    const struct quant_rows * x, const uint8_t * q, int rows, int d, float * s, struct few_ahead * ahead) {
    _Alignas(64) int32_t c[4][256];
    struct quant_keys    keys[2];
    const int            nb     = d / 32;
    const float *        weight = (const float *) (q + 512 * nb);
    quant_load(&keys[0], x, 0, nb);
    for (int j = 0; j < x->n; j += 16) {
        const struct quant_keys * k = &keys[j / 16 % 2];
        for (int i = j + 32; i < j + 48 && i < x->n; i++) {
            few_near(x->row[i], quant_bytes(x->type, nb));
        }
        vf sum[16];
        if (j + 16 < x->n) {
            quant_load(&keys[(j / 16 + 1) % 2], x, j + 16, nb);
        }
        for (int i = 0; i < 16; i++) {
            sum[i] = vf_zero();
        }
        for (int b0 = 0; b0 < nb; b0 += 4) {
            const int m = nb - b0 < 4 ? nb - b0 : 4;
            quant_dots(k, b0, q, m, c);
            for (int b = 0; b < m; b++) {
                const float * scale = k->scale + 16 * (b0 + b);
                few_prefetch(ahead, b0 == 0 ? 16 / m : 0);
#pragma GCC unroll 16
                for (int i = 0; i < 16; i++) {
                    const vf z = _mm512_cvtepi32_ps(_mm512_load_si512(c[b] + 16 * i));
                    sum[i]     = vf_fma(z, vf_set1(scale[i]), sum[i]);
                }
            }
        }
        vf_transpose(sum);
        for (int r = 0; r < rows; r++) {
            const vf y = vf_fma(sum[2 * r + 1], vf_set1(256.0f), sum[2 * r]);
            vf_store(s + r * FEW_BLOCK + j, vf_mul(y, vf_set1(weight[r])));
        }
    }
}

#endif
