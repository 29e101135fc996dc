/* few_amx_values.h - P*V of a few query rows against a q8_0 or q4_0 cache, in int8 as in few_amx.h. */
#ifndef PLONG_CPU_FEW_AMX_VALUES_H
#define PLONG_CPU_FEW_AMX_VALUES_H

#include "few_amx.h"

static inline float quant_max(const float * x) {
    return vf_hmax(vf_max(vf_max(vf_load(x), vf_load(x + 16)), vf_max(vf_load(x + 32), vf_load(x + 48))));
}

/* The digits of p[rows][FEW_BLOCK] times the scales of a block of V: a [16][64] bytes, row 2 r + digit, keys in the order of
 * quant_quad(). inv: QUANT_ONE / the largest that a product can be */
static void quant_probabilities(
    const float * p, int rows, const float * scale, const float * inv, uint8_t * a, struct few_ahead * ahead) {
    for (int r = 0; r < rows; r++, p += FEW_BLOCK, a += 128) {
        const vf f = vf_set1(inv[r]);
        __m512i  x[4];
        few_prefetch(ahead, 2);
        for (int i = 0; i < 4; i++) {
            x[i] = _mm512_cvtps_epi32(vf_mul(vf_mul(vf_load(p + 16 * i), f), vf_load(scale + 16 * i)));
        }
        const __m512i y0 = _mm512_packs_epi32(x[0], x[1]), y1 = _mm512_packs_epi32(x[2], x[3]);
        const __m512i half = _mm512_set1_epi16(128);
        const __m512i lo   = _mm512_packs_epi16(
            _mm512_srai_epi16(_mm512_slli_epi16(y0, 8), 8), _mm512_srai_epi16(_mm512_slli_epi16(y1, 8), 8));
        const __m512i hi = _mm512_packs_epi16(
            _mm512_srai_epi16(_mm512_add_epi16(y0, half), 8), _mm512_srai_epi16(_mm512_add_epi16(y1, half), 8));
        _mm512_store_si512(a, lo);
        _mm512_store_si512(a + 64, hi);
    }
}

/* First key of the i-th quad, in the order in which packing within 128-bit lanes leaves them */
static inline int quant_quad(int i) { return i % 4 * 16 + i / 4 * 4; }

/* V of a block of 32 dims as two B tiles [16 quads of keys][16 dims][4]; dims in the order 0-3 16-19 4-7 20-23 | 8-11 ... */
PLONG_INLINE void quant_tiles_of(
    const int32_t type, const char * const * row, int b, int8_t * out, struct few_ahead * ahead) {
    for (int i = 0; i < FEW_BLOCK / 4; i++, out += 64) {
        const char * const * at = row + quant_quad(i);
        few_prefetch(ahead, i % 2);
        const __m256i r0 = quant_block(type, at[0], b), r1 = quant_block(type, at[1], b);
        const __m256i r2 = quant_block(type, at[2], b), r3 = quant_block(type, at[3], b);
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
        struct quant_work *now = &work[b % 2], *last = &work[(b + 1) % 2];
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
