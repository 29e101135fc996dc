/* scores.h - keys of the index times queries, by AVX-512's products of four bytes (VNNI). */
#ifndef PLONG_CPU_AVX512BF16_SCORES_H
#define PLONG_CPU_AVX512BF16_SCORES_H

#include "cpu/kernel.h"

/* Up to 4 rows; sums [rows][4] are 16 keys each. */
PLONG_INLINE void scores_rows(
    const int rows, const uint8_t * nibbles, int quads, const int8_t * digits, int stride, int32_t * out) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i       sum[4][4];
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < 4; j++) {
            sum[r][j] = _mm512_setzero_si512();
        }
    }
    for (int q = 0; q < quads; q++, nibbles += 2 * PLONG_PAGE) {
        const __m512i a = _mm512_loadu_si512(nibbles), b = _mm512_loadu_si512(nibbles + PLONG_PAGE);
        const __m512i x[4] = {
            _mm512_and_si512(a, low),
            _mm512_and_si512(_mm512_srli_epi16(a, 4), low),
            _mm512_and_si512(b, low),
            _mm512_and_si512(_mm512_srli_epi16(b, 4), low),
        };
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, digits + r * stride + 4 * q, sizeof(four));
            const __m512i y = _mm512_set1_epi32(four);
            for (int j = 0; j < 4; j++) {
                sum[r][j] = _mm512_dpbusd_epi32(sum[r][j], x[j], y);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < 4; j++) {
            _mm512_storeu_si512(out + r * PLONG_PAGE + 16 * j, sum[r][j]);
        }
    }
}

static void index_scores(
    const uint8_t * nibbles, int quads, const int8_t * digits, int stride, int rows, int32_t * out) {
    for (int r = 0; r < rows; r += 4, digits += 4 * stride, out += 4 * PLONG_PAGE) {
        switch (rows - r) {
            case 1: scores_rows(1, nibbles, quads, digits, stride, out); break;
            case 2: scores_rows(2, nibbles, quads, digits, stride, out); break;
            case 3: scores_rows(3, nibbles, quads, digits, stride, out); break;
            default: scores_rows(4, nibbles, quads, digits, stride, out); break;
        }
    }
}

#endif
