/*
 * narrow.h - reads a quantized cache for a few query rows (decode) with AMX's products of bytes. Queries and
 * probabilities become two signed bytes each.
 */
#ifndef PLONG_CPU_AMX_NARROW_H
#define PLONG_CPU_AMX_NARROW_H

#include "cpu/avx512/narrow_quant.h"

#define QUANT_ROWS  4 /* query rows of a group: their digits are 8 rows, or columns, of a tile */
#define QUANT_GROUP ((PLONG_NARROW + QUANT_ROWS - 1) / QUANT_ROWS)

/* Tile numbers, as names that the compiler's own macros can paste into an instruction */
#define K_SUMS    0
#define K_SUMS_2  1
#define K_KEYS    2
#define K_QUERIES 3
#define V_SUMS    4
#define V_SUMS_2  5
#define V_WEIGHTS 6
#define V_VALUES  7

/* Makes earlier stores visible to tile loads: gcc does not know that these read memory. */
#define QUANT_STORED() __asm__ volatile("" : : : "memory")

/* Whether the integers are multiplied as they are, by the functions named q8: those of q4_0 are as nibbles. */
PLONG_INLINE bool quant_as_bytes(const int32_t type) { return type != GGML_TYPE_Q4_0; }

static void quant_config(int32_t k_type) {
    struct tile_config c = { .palette = 1 };
    for (int i = 0; i < 8; i++) {
        c.bytes[i] = i < V_SUMS && quant_as_bytes(k_type) ? 32 : 64;
        c.rows[i]  = (i >= V_SUMS && i < V_VALUES) || (i == K_QUERIES && quant_as_bytes(k_type)) ? 8 : 16;
    }
    __asm__ volatile("" : : "r"(&c) : "memory"); /* as in wide_enter() */
    _tile_loadconfig(&c);
}

/* Loads some words of n rows; those of row j end up j places higher, and the other places are undefined. The address
 * replaces a shuffle, for which there is only one port. whole: 64 bytes of the row can be read */
PLONG_INLINE __m512i quant_merge(const char * const * row, const int n, size_t at, __mmask32 words, bool whole) {
    const char * const first = row[0] + at;
    __m512i            x     = whole ? _mm512_loadu_si512(first) : _mm512_maskz_loadu_epi16(words, first);
#pragma GCC unroll 8
    for (int j = 1; j < n; j++) {
        const char * here = row[j] + at;
        __asm__("" : "+r"(here)); /* otherwise gcc keeps `at - 2 j` for all j in vector registers */
        x = _mm512_mask_loadu_epi16(x, words << j, here - 2 * j);
    }
    return x;
}

PLONG_INLINE void quant_two_scales(__m512i x, vf * scale) {
    scale[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(x));
    scale[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1));
}

/* scale[2]: of a block of 16 rows, and of the next if there are two; or another half of them. Handles a word of 8 rows
 * and of their next blocks at once */
PLONG_INLINE void quant_scales_q8(const int32_t type, const char * const * row, size_t at, bool two, vf * scale) {
    const int64_t first = 0x0003000200010000, last = 0x0007000600050004;
    const int     next = (int) block_bytes(type) / 2;
    const int64_t add  = 0x0001000100010001 * next;
    const __m512i order = _mm512_setr_epi64( /* words 0 to 7, twice, then the same of the next block */
        first, last, first, last, first + add, last + add, first + add, last + add);
    const __mmask32 words = two ? 1u << next | 1 : 1;
    const bool      whole = two && 2 * block_bytes(type) >= 64;
    const __m512i   x = quant_merge(row, 8, at, words, whole), y = quant_merge(row + 8, 8, at, words, whole);
    quant_two_scales(_mm512_mask_permutexvar_epi16(_mm512_permutexvar_epi16(order, x), 0xff00ff00u, order, y), scale);
}

/* The same for offsets, of types that have them */
PLONG_INLINE void quant_offsets_q8(
    const int32_t type, const char * const * row, size_t at, bool two, const vf * scale, vf * offset) {
    if (block_has_min(type)) {
        quant_scales_q8(type, row, at + sizeof(uint16_t), two, offset);
        for (int i = 0; i < 2; i++) {
            offset[i] = vf_fma(scale[i], vf_set1(block_middle(type)), offset[i]);
        }
    }
}

/* scale[4]: of m blocks of 16 rows; the others are undefined. Handles words 0, 9, 18 and 27 of 4 rows at once */
PLONG_INLINE void quant_scales_q4(const char * const * row, size_t at, int m, vf * scale) {
    const __mmask32 words = 1u | (m > 1) << 9 | (m > 2) << 18 | (m > 3) << 27;
    const __m512i   order = _mm512_setr_epi64( /* words 0 to 3, four times, then 9 to 12 */
        0x0003000200010000, 0x0003000200010000, 0x0003000200010000, 0x0003000200010000, 0x000c000b000a0009,
        0x000c000b000a0009, 0x000c000b000a0009, 0x000c000b000a0009);
    const __m512i next  = _mm512_add_epi16(order, _mm512_set1_epi16(18));
    __m512i       first = _mm512_setzero_si512(), second = first;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const __mmask32 here = (__mmask32) 0x000f000fu << (4 * i);
        const __m512i   x    = quant_merge(row + 4 * i, 4, at, words, m == 4);
        first                = _mm512_mask_permutexvar_epi16(first, here, order, x);
        second               = _mm512_mask_permutexvar_epi16(second, here, next, x);
    }
    quant_two_scales(first, scale);
    quant_two_scales(second, scale + 2);
}

/* The digits of x, |x| <= 16383, as bytes 0 and 1: x = d0 + 256 d1 */
static inline __m512i quant_digits(__m512i x) {
    const __m512i bias = _mm512_set1_epi32(0x8080);
    return _mm512_xor_si512(_mm512_add_epi32(x, bias), bias);
}

/* The sums of the two digits, combined */
PLONG_INLINE vf quant_sum(const int32_t * lo, const int32_t * hi) {
    const vf x = _mm512_cvtepi32_ps(_mm512_load_si512(lo)), y = _mm512_cvtepi32_ps(_mm512_load_si512(hi));
    return vf_fma(y, vf_set1(256.0f), x);
}

/* The integers of q4_0's nibbles times 16, in [-128, 112]: QUANT_NIBBLE times too large. Dims 0-15 of a block, and
 * 16-31 */
#define QUANT_NIBBLE 16.0f

PLONG_INLINE __m512i quant_high_nibbles(__m512i x) { /* (x ^ 0x80) & 0xf0 */
    return _mm512_ternarylogic_epi32(x, _mm512_set1_epi8((char) 0x80), _mm512_set1_epi8((char) 0xf0), 0x28);
}

PLONG_INLINE __m512i quant_low_nibbles(__m512i x) { return quant_high_nibbles(_mm512_slli_epi16(x, 4)); }

#define QUANT_FOR_TYPE(call, type, ...)                                    \
    switch (type) {                                                        \
        case GGML_TYPE_Q8_0: call(GGML_TYPE_Q8_0, __VA_ARGS__); break;     \
        case GGML_TYPE_Q4_1: call(GGML_TYPE_Q4_1, __VA_ARGS__); break;     \
        case GGML_TYPE_Q5_0: call(GGML_TYPE_Q5_0, __VA_ARGS__); break;     \
        case GGML_TYPE_Q5_1: call(GGML_TYPE_Q5_1, __VA_ARGS__); break;     \
        case GGML_TYPE_IQ4_NL: call(GGML_TYPE_IQ4_NL, __VA_ARGS__); break; \
        default: call(GGML_TYPE_Q4_0, __VA_ARGS__); break;                 \
    }

#endif
