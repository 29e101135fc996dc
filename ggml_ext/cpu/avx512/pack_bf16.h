/* pack_bf16.h - Q, K and V as bf16. K of a block as tiles [keys / 32][d_k / 32][2] of [16 pairs of dims][16 keys][2], V
 * as tiles [d_v / 32][BLOCK / 32][2] of [16 pairs of keys][16 dims][2]: read from end to end. */
#ifndef PLONG_CPU_AVX512_PACK_BF16_H
#define PLONG_CPU_AVX512_PACK_BF16_H

#include "cpu/body/rows.h"

typedef uint16_t elem; /* bf16 */
#define TILE 512       /* bf16 in a tile: 16 rows of 64 bytes */

#define KEYS_TAME 0x5d80 /* 2^60 in bf16: fixed point can be used for keys that are all below */

/* Row of the tile for values j, j + 1 of 32. Their order is the one in which a pack instruction leaves 16-bit weights:
 * fours of the first 16 and of the second 16 alternate. */
static inline int value_row(int j) { return j % 16 / 4 * 4 + j % 4 / 2 + j / 16 * 2; }

static inline __m512i bf16_of(const float * lo, const float * hi) {
    return (__m512i) _mm512_cvtne2ps_pbh(_mm512_loadu_ps(hi), _mm512_loadu_ps(lo));
}

static inline void wide_pack_query(elem * dst, const float * q, int dk) {
    for (int i = 0; i < dk; i += 32) {
        _mm512_storeu_si512(dst + i, bf16_of(q + i, q + i + 16));
    }
}

/* Rows whose length is not a multiple of 32 are converted by way of float32: stage [pad32(d)] holds such a row. */
static inline bool row_stages(int32_t type, int d) { return d % 32 != 0 || type == GGML_TYPE_F32; }

/* dims i .. i + 31 of a row in bf16; dims from d on are zeros */
PLONG_INLINE __m512i row_bf16(int32_t type, const void * row, int i, const float * stage, bool stages) {
    vf lo, hi;
    if (stages) {
        return bf16_of(stage + i, stage + i + 16);
    }
    switch (type) {
        case GGML_TYPE_BF16: return _mm512_loadu_si512((const uint16_t *) row + i);
        case GGML_TYPE_F16:
            lo = vf_f16((const uint16_t *) row + i);
            hi = vf_f16((const uint16_t *) row + i + 16);
            break;
        default: {
            const char *            block = (const char *) row + i / 32 * block_bytes(type);
            const struct block_line x     = block_line(type, block);
            lo                            = block_values(type, block, x, 0);
            hi                            = block_values(type, block, x, 16);
        }
    }
    return (__m512i) _mm512_cvtne2ps_pbh(hi, lo);
}

/* row[n] of d values; stage [16][pad32(d)]. Keys up to the next multiple of 32 are zeros. Returns whether all of them
 * are tame, i.e. below KEYS_TAME. */
PLONG_INLINE bool pack_keys_of(const int32_t type, elem * dst, const void * const * row, int n, int d, float * stage) {
    const int  ds     = plong_pad32(d);
    const bool stages = row_stages(type, d);
    __m512i    top    = _mm512_setzero_si512(); /* |k| * 2 as integers */
    const int  bytes = (int) ggml_row_size((enum ggml_type) type, d), some = (PREFETCH_AHEAD * 32 + ds - 1) / ds;
    prefetch_rows(row, 0, PREFETCH_AHEAD, n, bytes);
    for (int j0 = 0; j0 < ((n + 31) & ~31); j0 += 16) {
        elem * out = dst + (size_t) (j0 / 32) * 32 * ds + j0 / 16 % 2 * TILE;
        for (int j = 0; stages && j < 16 && j0 + j < n; j++) {
            row_to_f32(type, row[j0 + j], stage + j * ds, d);
        }
        for (int i = 0; i < ds; i += 32) {
            vf r[16];
            prefetch_rows(row, j0 + PREFETCH_AHEAD + i / 32 * some, some, n, bytes);
            for (int j = 0; j < 16; j++) {
                const __m512i x =
                    j0 + j >= n ? _mm512_setzero_si512() : row_bf16(type, row[j0 + j], i, stage + j * ds, stages);
                top  = _mm512_max_epu16(top, _mm512_add_epi16(x, x));
                r[j] = _mm512_castsi512_ps(x);
            }
            vf_transpose(r); /* pairs of dims as one float each */
            for (int j = 0; j < 16; j++) {
                vf_store((float *) (out + i / 32 * 2 * TILE) + j * 16, r[j]);
            }
        }
    }
    return _mm512_cmpge_epu16_mask(top, _mm512_set1_epi16((short) (2 * KEYS_TAME))) == 0;
}

/* stage [2][pad32(d)]; rows up to the next multiple of 32 are zeros */
PLONG_INLINE void pack_values_of(
    const int32_t type, elem * dst, const void * const * row, int n, int d, float * stage) {
    const int     ds     = plong_pad32(d);
    const bool    stages = row_stages(type, d);
    const __m512i lo     = _mm512_set_epi16(
        47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1,
        32, 0);
    const __m512i hi    = _mm512_add_epi16(lo, _mm512_set1_epi16(16));
    const int     bytes = (int) ggml_row_size((enum ggml_type) type, d);
    prefetch_rows(row, 0, PREFETCH_AHEAD, n, bytes);
    for (int j = 0; j < ((n + 31) & ~31); j += 2) {
        prefetch_rows(row, j + PREFETCH_AHEAD, 2, n, bytes);
        for (int x = 0; stages && x < 2 && j + x < n; x++) {
            row_to_f32(type, row[j + x], stage + x * ds, d);
        }
        for (int i = 0; i < ds; i += 32) {
            const __m512i a   = j < n ? row_bf16(type, row[j], i, stage, stages) : _mm512_setzero_si512();
            const __m512i b   = j + 1 < n ? row_bf16(type, row[j + 1], i, stage + ds, stages) : _mm512_setzero_si512();
            elem *        out = dst + (size_t) (i / 32 * (BLOCK / 32) + j / 32) * 2 * TILE + value_row(j % 32) * 32;
            _mm512_storeu_si512(out, _mm512_permutex2var_epi16(a, lo, b));
            _mm512_storeu_si512(out + TILE, _mm512_permutex2var_epi16(a, hi, b));
        }
    }
}

#define FOR_TYPE(call, type, ...)                                          \
    switch (type) {                                                        \
        case GGML_TYPE_F16: call(GGML_TYPE_F16, __VA_ARGS__); break;       \
        case GGML_TYPE_BF16: call(GGML_TYPE_BF16, __VA_ARGS__); break;     \
        case GGML_TYPE_Q8_0: call(GGML_TYPE_Q8_0, __VA_ARGS__); break;     \
        case GGML_TYPE_Q4_0: call(GGML_TYPE_Q4_0, __VA_ARGS__); break;     \
        case GGML_TYPE_Q4_1: call(GGML_TYPE_Q4_1, __VA_ARGS__); break;     \
        case GGML_TYPE_Q5_0: call(GGML_TYPE_Q5_0, __VA_ARGS__); break;     \
        case GGML_TYPE_Q5_1: call(GGML_TYPE_Q5_1, __VA_ARGS__); break;     \
        case GGML_TYPE_IQ4_NL: call(GGML_TYPE_IQ4_NL, __VA_ARGS__); break; \
        default: call(GGML_TYPE_F32, __VA_ARGS__); break;                  \
    }

static bool wide_pack_keys(elem * dst, int32_t type, const void * const * row, int n, int d, float * stage) {
    bool tame;
    FOR_TYPE(tame = pack_keys_of, type, dst, row, n, d, stage)
    return tame;
}

static void wide_pack_values(elem * dst, int32_t type, const void * const * row, int n, int d, float * stage) {
    FOR_TYPE(pack_values_of, type, dst, row, n, d, stage)
}

#endif
