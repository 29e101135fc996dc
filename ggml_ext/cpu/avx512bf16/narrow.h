/* narrow.h - reads a quantized cache for a few query rows (decode) with AVX-512's products of int16 pairs, on top of
 * narrow_quant.h. */
#ifndef PLONG_CPU_AVX512BF16_NARROW_H
#define PLONG_CPU_AVX512BF16_NARROW_H

#include "cpu/avx512/narrow_quant.h"

static inline void quant_config(int32_t k_type) { (void) k_type; }

PLONG_INLINE short quant_word(const char * p) {
    short x;
    memcpy(&x, p, sizeof(x));
    return x;
}

/* The words at `at` of 8 rows. They are inserted one by one, since gcc loads some of them through mask registers if it
 * gets all at once. There is no loop, since the place is part of the instruction, which not every compiler recognizes
 * in a loop. */
PLONG_INLINE __m128i quant_words(const char * const * row, size_t at) {
    __m128i x = _mm_setzero_si128();
    x         = _mm_insert_epi16(x, quant_word(row[0] + at), 0);
    x         = _mm_insert_epi16(x, quant_word(row[1] + at), 1);
    x         = _mm_insert_epi16(x, quant_word(row[2] + at), 2);
    x         = _mm_insert_epi16(x, quant_word(row[3] + at), 3);
    x         = _mm_insert_epi16(x, quant_word(row[4] + at), 4);
    x         = _mm_insert_epi16(x, quant_word(row[5] + at), 5);
    x         = _mm_insert_epi16(x, quant_word(row[6] + at), 6);
    return _mm_insert_epi16(x, quant_word(row[7] + at), 7);
}

/* scale[4]: of m blocks of 16 rows, m <= 4, the first at `at` bytes; the others are unchanged. */
PLONG_INLINE void quant_scales(const int32_t type, const char * const * row, size_t at, int m, vf * scale) {
    for (int i = 0; i < m; i++, at += block_bytes(type)) {
        scale[i] = _mm512_cvtph_ps(_mm256_set_m128i(quant_words(row + 8, at), quant_words(row, at)));
    }
}

PLONG_INLINE int quant_two_words(const char * p) {
    int x;
    memcpy(&x, p, sizeof(x));
    return x;
}

/* The scales and minimums at `at` of 4 rows, inserted for the same reason */
PLONG_INLINE __m128i quant_word_pairs(const char * const * row, size_t at) {
    __m128i x = _mm_cvtsi32_si128(quant_two_words(row[0] + at));
    x         = _mm_insert_epi32(x, quant_two_words(row[1] + at), 1);
    x         = _mm_insert_epi32(x, quant_two_words(row[2] + at), 2);
    return _mm_insert_epi32(x, quant_two_words(row[3] + at), 3);
}

/* Scales, and offsets of types that have them */
PLONG_INLINE void quant_lines(const int32_t type, const char * const * row, size_t at, int m, vf * scale, vf * offset) {
    if (!block_has_min(type)) {
        quant_scales(type, row, at, m, scale);
        return;
    }
    for (int i = 0; i < m; i++, at += block_bytes(type)) {
        const __m256i a = _mm256_set_m128i(quant_word_pairs(row + 4, at), quant_word_pairs(row, at));
        const __m256i b = _mm256_set_m128i(quant_word_pairs(row + 12, at), quant_word_pairs(row + 8, at));
        const __m512i x = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
        scale[i]        = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x));
        offset[i]       = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(x, 16)));
        offset[i]       = vf_fma(scale[i], vf_set1(block_middle(type)), offset[i]);
    }
}

/* Whether the integers are multiplied as nibbles, which are 8 larger; else as signed bytes */
PLONG_INLINE bool quant_nibbles(const int32_t type) { return type == GGML_TYPE_Q4_0 || type == GGML_TYPE_Q4_1; }

/* 32 floats as int16 */
PLONG_INLINE __m512i quant_int16(vf a, vf b) {
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7); /* packed per lane of 128 bits */
    return _mm512_permutexvar_epi64(order, _mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b)));
}

/* The word at p, of two int16, in all lanes */
PLONG_INLINE __m512i quant_pair(const int16_t * p) {
    int32_t x;
    memcpy(&x, p, sizeof(x));
    return _mm512_set1_epi32(x);
}

#define QUANT_FOR_ROWS(call, type, rows, ...)       \
    switch (rows) {                                 \
        case 4: call(type, 4, __VA_ARGS__); break;  \
        case 2: call(type, 2, __VA_ARGS__); break;  \
        default: call(type, 1, __VA_ARGS__); break; \
    }

#define QUANT_FOR_TYPE(call, type, rows, ...)                                                   \
    switch (type) {                                                                             \
        case GGML_TYPE_Q8_0: QUANT_FOR_ROWS(call, GGML_TYPE_Q8_0, rows, __VA_ARGS__) break;     \
        case GGML_TYPE_Q4_1: QUANT_FOR_ROWS(call, GGML_TYPE_Q4_1, rows, __VA_ARGS__) break;     \
        case GGML_TYPE_Q5_0: QUANT_FOR_ROWS(call, GGML_TYPE_Q5_0, rows, __VA_ARGS__) break;     \
        case GGML_TYPE_Q5_1: QUANT_FOR_ROWS(call, GGML_TYPE_Q5_1, rows, __VA_ARGS__) break;     \
        case GGML_TYPE_IQ4_NL: QUANT_FOR_ROWS(call, GGML_TYPE_IQ4_NL, rows, __VA_ARGS__) break; \
        default: QUANT_FOR_ROWS(call, GGML_TYPE_Q4_0, rows, __VA_ARGS__) break;                 \
    }

static inline int quant_step(int rows) { return narrow_step(rows < 4 ? rows : 4); }

#endif
