/*
 * few_amx.h - logits and P*V of a few query rows against a q8_0 or q4_0 cache, in the cache's own integers: AMX int8
 * products, exact in int32. Queries and probabilities become two signed bytes each, 15 bits and a sign per block, a
 * hundred times finer than the bf16 of wider tiles; rows x digits share a tile, where they cost nothing.
 */
#ifndef PLONG_CPU_FEW_AMX_H
#define PLONG_CPU_FEW_AMX_H

#include "blocks.h"

#define DIGITS     2
#define QUANT_ROWS 8                 /* rows whose digits fit into the 16 rows, or columns, of a tile */
#define QUANT_ONE  16383.0f          /* the largest value: its high digit stays below 64 */
#define QUANT_SIZE (8 * 64 + 16 * 4) /* bytes of a block of 32 dims of QUANT_ROWS queries: B tile, then weights */

_Static_assert(QUANT_ROWS >= PLONG_FEW, "all rows of a kv head go in one pass");

static inline bool quant_type(int32_t type) { return type == GGML_TYPE_Q8_0 || type == GGML_TYPE_Q4_0; }

static size_t quant_size(int rows, int d_k) { return (size_t) rows * (d_k / 32) * QUANT_SIZE; }

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

/* q [rows][dq] -> [d/32] of QUANT_SIZE bytes; column 2 r + digit */
static void quant_queries(const float * q, int rows, int dq, int d, uint8_t * out) {
    for (int b = 0; b < d / 32; b++, out += QUANT_SIZE) {
        float * weight = (float *) (out + 8 * 64);
        memset(out, 0, QUANT_SIZE);
        for (int r = 0; r < rows; r++) {
            const float * x   = q + (size_t) r * dq + 32 * b;
            const float   max = vf_hmax(vf_max(vf_abs(vf_load(x)), vf_abs(vf_load(x + 16))));
            const float   inv = max > 0.0f ? QUANT_ONE / max : 0.0f;
            for (int i = 0; i < 32; i += 16) {
                uint32_t digits[16];
                _mm512_storeu_si512(
                    digits, quant_digits(_mm512_cvtps_epi32(vf_mul(vf_load(x + i), vf_set1(inv)))));
                for (int j = 0; j < 16; j++) {
                    for (int k = 0; k < DIGITS; k++) {
                        out[(i + j) / 4 * 64 + (r * DIGITS + k) * 4 + j % 4] = (uint8_t) (digits[j] >> 8 * k);
                    }
                }
            }
            for (int k = 0; k < DIGITS; k++) {
                weight[r * DIGITS + k] = max / QUANT_ONE * (float) (1 << 8 * k);
            }
        }
    }
}

/* What stands for the rows of keys that are not there: blocks whose scale is 0 */
static const char quant_nothing[16 * sizeof(struct q8_block)];

/* Rows of keys in the cache, padded to FEW_BLOCK */
struct quant_rows {
    int32_t      type, n;
    const char * row[FEW_BLOCK];
};

static void quant_rows(
    struct quant_rows * x, const struct keys * b, const char * base, size_t cell, int32_t type) {
    x->type = type;
    x->n    = b->n;
    cache_rows((const void **) x->row, b, base, cell);
    for (int j = b->n; j < FEW_BLOCK; j++) {
        x->row[j] = quant_nothing;
    }
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

/* f32 scales of block b of n rows, n a multiple of 16 */
PLONG_INLINE void quant_scales(const int32_t type, const char * const * row, int n, int b, float * scale) {
    uint16_t     half[FEW_BLOCK];
    const size_t at = (size_t) b * (type == GGML_TYPE_Q8_0 ? sizeof(struct q8_block) : sizeof(struct q4_block));
    for (int j = 0; j < n; j++) {
        memcpy(&half[j], row[j] + at, sizeof(half[j]));
    }
    for (int j = 0; j < n; j += 16) {
        vf_store(scale + j, vf_f16(half + j));
    }
}

/* 16 rows as int8 [16][32 nb], and their scales [nb][16] */
struct quant_keys {
    _Alignas(64) int8_t value[16 * 512];
    float scale[16 * 16];
};

PLONG_INLINE void quant_load_of(const int32_t type, struct quant_keys * k, const char * const * row, const int nb) {
    for (int b = 0; b < nb; b++) {
        quant_scales(type, row, 16, b, k->scale + 16 * b);
    }
    for (int j = 0; j < 16; j++) {
        for (int b = 0; b < nb; b++) {
            _mm256_store_si256((__m256i *) (k->value + 32 * (j * nb + b)), quant_block(type, row[j], b));
        }
    }
}

static void quant_load(struct quant_keys * k, const struct quant_rows * x, int j, int nb) {
    if (x->type == GGML_TYPE_Q8_0) {
        if (nb == 4) {
            quant_load_of(GGML_TYPE_Q8_0, k, x->row + j, 4);
        } else {
            quant_load_of(GGML_TYPE_Q8_0, k, x->row + j, nb);
        }
    } else if (nb == 4) {
        quant_load_of(GGML_TYPE_Q4_0, k, x->row + j, 4);
    } else {
        quant_load_of(GGML_TYPE_Q4_0, k, x->row + j, nb);
    }
}

/* Sums of 16 keys by 16 columns for blocks b0 .. b0 + m of 32 dims, m <= 4 */
PLONG_INLINE void quant_dots(const int8_t * k, int d, const uint8_t * q, int m, int32_t (*c)[256]) {
#define QUANT_DOT(i)                                                \
    if (i < m) {                                                    \
        _tile_zero(i);                                              \
        _tile_loadd(4, k + 32 * i, d);                              \
        _tile_loadd(5, q + (size_t) i * QUANT_SIZE, 64);            \
        _tile_dpbssd(i, 4, 5);                                      \
    }
#define QUANT_STORE(i)              \
    if (i < m) {                    \
        _tile_stored(i, c[i], 64);  \
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
    const int            nb = d / 32;
    quant_load(&keys[0], x, 0, nb);
    for (int j = 0; j < x->n; j += 16) {
        const struct quant_keys * k = &keys[j / 16 % 2];
        vf                        sum[16];
        if (j + 16 < x->n) {
            quant_load(&keys[(j / 16 + 1) % 2], x, j + 16, nb);
        }
        for (int i = 0; i < 16; i++) {
            sum[i] = vf_zero();
        }
        for (int b0 = 0; b0 < nb; b0 += 4) {
            const int       m = nb - b0 < 4 ? nb - b0 : 4;
            const uint8_t * y = q + (size_t) b0 * QUANT_SIZE;
            quant_dots(k->value + 32 * b0, d, y, m, c);
            for (int b = 0; b < m; b++) {
                const vf      w     = vf_load((const float *) (y + (size_t) b * QUANT_SIZE + 8 * 64));
                const float * scale = k->scale + 16 * (b0 + b);
                few_prefetch(ahead, b0 == 0 ? 16 / m : 0);
#pragma GCC unroll 16
                for (int i = 0; i < 16; i++) {
                    const vf z = _mm512_cvtepi32_ps(_mm512_load_si512(c[b] + 16 * i));
                    sum[i]     = vf_fma(z, vf_mul(w, vf_set1(scale[i])), sum[i]);
                }
            }
        }
        vf_transpose(sum);
        for (int r = 0; r < rows; r++) {
            vf_store(s + r * FEW_BLOCK + j, vf_add(sum[2 * r], sum[2 * r + 1]));
        }
    }
}

static inline float quant_max(const float * x) {
    return vf_hmax(vf_max(vf_max(vf_load(x), vf_load(x + 16)), vf_max(vf_load(x + 32), vf_load(x + 48))));
}

/* The digits of p[rows][FEW_BLOCK] times the scales of a block of V: a [16][64] bytes, row 2 r + digit. inv: 1 / the largest
 * that a product can be */
static void quant_probabilities(
    const float * p, int rows, const float * scale, const float * inv, uint8_t * a, struct few_ahead * ahead) {
    for (int r = 0; r < rows; r++, p += FEW_BLOCK, a += 128) {
        const vf f = vf_set1(inv[r]);
        few_prefetch(ahead, 2);
        for (int i = 0; i < FEW_BLOCK; i += 16) {
            const vf      x = vf_mul(vf_mul(vf_load(p + i), f), vf_load(scale + i));
            const __m512i y = quant_digits(_mm512_cvtps_epi32(x));
            _mm_store_si128((__m128i *) (a + i), _mm512_cvtepi32_epi8(y));
            _mm_store_si128((__m128i *) (a + 64 + i), _mm512_cvtepi32_epi8(_mm512_srli_epi32(y, 8)));
        }
    }
}

/* V of a block of 32 dims as two B tiles [16 quads of keys][16 dims][4]; dims in the order 0-3 16-19 4-7 20-23 | 8-11 ... */
PLONG_INLINE void quant_tiles_of(
    const int32_t type, const char * const * row, int b, int8_t * out, struct few_ahead * ahead) {
    for (int j = 0; j < FEW_BLOCK; j += 4, row += 4, out += 64) {
        few_prefetch(ahead, j % 8 == 0);
        const __m256i r0 = quant_block(type, row[0], b), r1 = quant_block(type, row[1], b);
        const __m256i r2  = quant_block(type, row[2], b), r3 = quant_block(type, row[3], b);
        const __m256i a01 = _mm256_unpacklo_epi8(r0, r1), b01 = _mm256_unpackhi_epi8(r0, r1);
        const __m256i a23 = _mm256_unpacklo_epi8(r2, r3), b23 = _mm256_unpackhi_epi8(r2, r3);
        _mm256_store_si256((__m256i *) out, _mm256_unpacklo_epi16(a01, a23));
        _mm256_store_si256((__m256i *) (out + 32), _mm256_unpackhi_epi16(a01, a23));
        _mm256_store_si256((__m256i *) (out + 1024), _mm256_unpacklo_epi16(b01, b23));
        _mm256_store_si256((__m256i *) (out + 1056), _mm256_unpackhi_epi16(b01, b23));
    }
}

static inline vf quant_sum(const int32_t * c, int r) {
    const vf x0 = _mm512_cvtepi32_ps(_mm512_load_si512(c + 32 * r));
    const vf x1 = _mm512_cvtepi32_ps(_mm512_load_si512(c + 32 * r + 16));
    return vf_fma(x1, vf_set1(256.0f), x0);
}

/* Probabilities and V of a block of 32 dims as tiles, and their products */
struct quant_work {
    _Alignas(64) uint8_t a[16 * 64];
    _Alignas(64) int8_t v[2][1024];
    _Alignas(64) int32_t c[2][256];
    float weight[QUANT_ROWS];
};

static void quant_products(struct quant_work * w) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_loadd(6, w->a, 64);
    _tile_loadd(7, w->v[0], 64);
    _tile_dpbssd(0, 6, 7);
    _tile_loadd(7, w->v[1], 64);
    _tile_dpbssd(1, 6, 7);
    _tile_stored(0, w->c[0], 64);
    _tile_stored(1, w->c[1], 64);
}

static void quant_add(const struct quant_work * w, int rows, float * acc, int dv) {
    for (int r = 0; r < rows; r++, acc += dv) {
        const vf x = quant_sum(w->c[0], r), y = quant_sum(w->c[1], r), f = vf_set1(w->weight[r]);
        vf_store(acc, vf_fma(_mm512_shuffle_f32x4(x, y, 0x88), f, vf_load(acc)));
        vf_store(acc + 16, vf_fma(_mm512_shuffle_f32x4(x, y, 0xdd), f, vf_load(acc + 16)));
    }
}

static void quant_tiles(const struct quant_rows * x, int b, int8_t * out, struct few_ahead * ahead) {
    if (x->type == GGML_TYPE_Q8_0) {
        quant_tiles_of(GGML_TYPE_Q8_0, x->row, b, out, ahead);
    } else {
        quant_tiles_of(GGML_TYPE_Q4_0, x->row, b, out, ahead);
    }
}

/* acc[rows][dv] += p[rows][FEW_BLOCK] * v; p is 0 for keys that are not there. One block's tiles are filled while those of
 * the one before are multiplied: a tile that was just stored cannot be loaded at once. */
static void quant_values(
    const struct quant_rows * v, const float * p, int rows, int d, float * acc, int dv, struct few_ahead * ahead) {
    struct quant_work work[2];
    float             most[QUANT_ROWS], inv[QUANT_ROWS];
    const int         nb = d / 32;
    for (int r = 0; r < rows; r++) {
        most[r] = quant_max(p + r * FEW_BLOCK);
    }
    for (int i = 2 * rows; i < 16; i++) {
        memset(work[0].a + 64 * i, 0, 64);
        memset(work[1].a + 64 * i, 0, 64);
    }
    for (int b = 0; b <= nb; b++) {
        struct quant_work * now = &work[b % 2], * last = &work[(b + 1) % 2];
        if (b < nb) {
            float scale[FEW_BLOCK], size[FEW_BLOCK];
            if (v->type == GGML_TYPE_Q8_0) {
                quant_scales(GGML_TYPE_Q8_0, v->row, FEW_BLOCK, b, scale);
            } else {
                quant_scales(GGML_TYPE_Q4_0, v->row, FEW_BLOCK, b, scale);
            }
            for (int i = 0; i < FEW_BLOCK; i += 16) {
                vf_store(size + i, vf_abs(vf_load(scale + i)));
            }
            const float largest = quant_max(size);
            for (int r = 0; r < rows; r++) {
                const float bound = most[r] * largest;
                inv[r]            = bound > 1e-30f ? QUANT_ONE / bound : 0.0f;
                now->weight[r]    = bound / QUANT_ONE;
            }
            quant_probabilities(p, rows, scale, inv, now->a, ahead);
            quant_tiles(v, b, now->v[0], ahead);
        }
        if (b > 0) {
            quant_products(last);
            quant_add(last, rows, acc + 32 * (b - 1), dv);
        }
    }
}

#endif
