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
