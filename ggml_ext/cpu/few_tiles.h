/*
 * few_tiles.h - what AMX needs to read a quantized cache for a few query rows (decode): products of bytes. Queries and
 * probabilities become two signed bytes each.
 */
#ifndef PLONG_CPU_FEW_TILES_H
#define PLONG_CPU_FEW_TILES_H

#include "few_quant.h"

#define QUANT_ROWS  4 /* query rows of a group: their digits are 8 rows, or columns, of a tile */
#define QUANT_GROUP ((PLONG_FEW + QUANT_ROWS - 1) / QUANT_ROWS)

/* Tiles; names that the compiler's own macros can put into an instruction */
#define K_SUMS    0
#define K_SUMS_2  1
#define K_KEYS    2
#define K_QUERIES 3
#define V_SUMS    4
#define V_SUMS_2  5
#define V_WEIGHTS 6
#define V_VALUES  7

static void quant_config(int32_t k_type) {
    struct tile_config c = { .palette = 1 };
    for (int i = 0; i < 8; i++) {
        c.bytes[i] = i < V_SUMS && k_type == GGML_TYPE_Q8_0 ? 32 : 64;
        c.rows[i]  = (i >= V_SUMS && i < V_VALUES) || (i == K_QUERIES && k_type == GGML_TYPE_Q8_0) ? 8 : 16;
    }
    __asm__ volatile("" : : "r"(&c) : "memory"); /* as in wide_enter() */
    _tile_loadconfig(&c);
}

/* Which words of 16 bits hold the scales of m blocks, among words 32 part .. 32 part + 31 */
PLONG_INLINE __mmask32 quant_scale_words(const int32_t type, int m, int part) {
    __mmask32 words = 0;
    for (int b = 0; b < m; b++) {
        const int at = b * (int) few_quant_bytes(type) / 2 - 32 * part;
        words |= at >= 0 && at < 32 ? (__mmask32) 1 << at : 0;
    }
    return words;
}

PLONG_INLINE __m512i quant_or(const __m512i * x) {
    return _mm512_or_si512(_mm512_or_si512(x[0], x[1]), _mm512_or_si512(x[2], x[3]));
}

/* Words 0 and 17 of a row, and 34 and 51, to their places among those of 16 rows: each goes there at once. */
PLONG_INLINE void quant_scales_q8(const char * const * row, size_t at, int m, vf * scale) {
    const __mmask32 first = quant_scale_words(GGML_TYPE_Q8_0, m, 0), second = quant_scale_words(GGML_TYPE_Q8_0, m, 1);
    const __m512i   to01 = _mm512_mask_set1_epi16(_mm512_setzero_si512(), 0xffff0000u, 17);
    const __m512i   to23 = _mm512_mask_set1_epi16(_mm512_set1_epi16(2), 0xffff0000u, 19);
    __m512i         part[2][4]; /* by every fourth row: each waits for the one before */
    for (int j = 0; j < 4; j++) {
        part[0][j] = part[1][j] = _mm512_setzero_si512();
    }
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) {
        const __mmask32 here = (__mmask32) 0x00010001u << j;
        const __m512i   a    = _mm512_maskz_loadu_epi16(first, row[j] + at);
        part[0][j % 4]       = _mm512_mask_permutexvar_epi16(part[0][j % 4], here, to01, a);
        if (m > 2) {
            const __m512i b = _mm512_maskz_loadu_epi16(second, row[j] + at + 64);
            part[1][j % 4]  = _mm512_mask_permutexvar_epi16(part[1][j % 4], here, to23, b);
        }
    }
    const __m512i x = quant_or(part[0]), y = quant_or(part[1]);
    scale[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(x));
    scale[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1));
    scale[2] = _mm512_cvtph_ps(_mm512_castsi512_si256(y));
    scale[3] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(y, 1));
}

/* Words 0, 9, 18, 27 of 8 rows side by side, then of 16 rows block by block. */
PLONG_INLINE void quant_scales_q4(const char * const * row, size_t at, int m, vf * scale) {
    const __mmask32 words = quant_scale_words(GGML_TYPE_Q4_0, m, 0);
    const __m512i   to    = _mm512_set1_epi64(0x001b001200090000ll);
    __m512i         x[2]  = { _mm512_setzero_si512(), _mm512_setzero_si512() };
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) {
        const __m512i y = _mm512_maskz_loadu_epi16(words, row[j] + at);
        x[j / 8]        = _mm512_mask_permutexvar_epi16(x[j / 8], (__mmask32) 15 << (4 * (j % 8)), to, y);
    }
    const __m512i each = _mm512_setr_epi32( /* words 4 j, then 4 j + 1 */
        0x00040000, 0x000c0008, 0x00140010, 0x001c0018, 0x00240020, 0x002c0028, 0x00340030, 0x003c0038, 0x00050001,
        0x000d0009, 0x00150011, 0x001d0019, 0x00250021, 0x002d0029, 0x00350031, 0x003d0039);
    const __m512i y01 = _mm512_permutex2var_epi16(x[0], each, x[1]);
    const __m512i y23 = _mm512_permutex2var_epi16(x[0], _mm512_add_epi16(each, _mm512_set1_epi16(2)), x[1]);
    scale[0]          = _mm512_cvtph_ps(_mm512_castsi512_si256(y01));
    scale[1]          = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(y01, 1));
    scale[2]          = _mm512_cvtph_ps(_mm512_castsi512_si256(y23));
    scale[3]          = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(y23, 1));
}

/* scale[4]: of 16 rows' blocks b .. b + m, m <= 4; 0 beyond. A row gives its words to all blocks at once. */
PLONG_INLINE void quant_scales(const int32_t type, const char * const * row, int b, int m, vf * scale) {
    const size_t at = (size_t) b * few_quant_bytes(type);
    if (type == GGML_TYPE_Q8_0) {
        quant_scales_q8(row, at, m, scale);
    } else {
        quant_scales_q4(row, at, m, scale);
    }
}

/* The digits of x, |x| <= 16383, as bytes 0 and 1: x = d0 + 256 d1 */
static inline __m512i quant_digits(__m512i x) {
    const __m512i bias = _mm512_set1_epi32(0x8080);
    return _mm512_xor_si512(_mm512_add_epi32(x, bias), bias);
}

/* Sums of the two digits */
PLONG_INLINE vf quant_sum(const int32_t * lo, const int32_t * hi) {
    const vf x = _mm512_cvtepi32_ps(_mm512_load_si512(lo)), y = _mm512_cvtepi32_ps(_mm512_load_si512(hi));
    return vf_fma(y, vf_set1(256.0f), x);
}

/* The integers of q4_0's nibbles times 16, in [-128, 112]: QUANT_NIBBLE times too large. Dims 0-15 of a block, and 16-31 */
#define QUANT_NIBBLE 16.0f

PLONG_INLINE __m512i quant_high_nibbles(__m512i x) { /* (x ^ 0x80) & 0xf0 */
    return _mm512_ternarylogic_epi32(x, _mm512_set1_epi8((char) 0x80), _mm512_set1_epi8((char) 0xf0), 0x28);
}

PLONG_INLINE __m512i quant_low_nibbles(__m512i x) { return quant_high_nibbles(_mm512_slli_epi16(x, 4)); }

#endif
