/* scores.h - keys of the index times queries, by AVX2's products of byte pairs. */
#ifndef PLONG_CPU_AVX2_SCORES_H
#define PLONG_CPU_AVX2_SCORES_H

#include <immintrin.h>

#include "cpu/body/digits_plain.h"

/* sum[8] += four nibbles of each of 8 keys times four digits; two products are at most 2 * 15 * 127 */
PLONG_INLINE __m256i scores_four(__m256i sum, __m256i nibbles, __m256i digits) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(nibbles, digits), _mm256_set1_epi16(1)));
}

/* One line of a page, 32 keys, for up to 2 rows */
PLONG_INLINE void scores_rows(
    const int rows, const uint8_t * nibbles, const uint8_t * ahead, int quads, const int8_t * digits, int stride,
    int32_t * out) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256i       sum[2][4];
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < 4; j++) {
            sum[r][j] = _mm256_setzero_si256();
        }
    }
    for (int q = 0; q < quads; q++) {
        const size_t  at = (size_t) q * 2 * PLONG_PAGE;
        const __m256i a  = _mm256_loadu_si256((const __m256i *) (nibbles + at));
        const __m256i b  = _mm256_loadu_si256((const __m256i *) (nibbles + at + 32));
        __builtin_prefetch(ahead + at, 0, 3);
        const __m256i x[4] = {
            _mm256_and_si256(a, low),
            _mm256_and_si256(b, low),
            _mm256_and_si256(_mm256_srli_epi16(a, 4), low),
            _mm256_and_si256(_mm256_srli_epi16(b, 4), low),
        };
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, digits + r * stride + 4 * q, sizeof(four));
            const __m256i y = _mm256_set1_epi32(four);
            for (int j = 0; j < 4; j++) {
                sum[r][j] = scores_four(sum[r][j], x[j], y);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < 4; j++) {
            _mm256_storeu_si256((__m256i *) (out + r * PLONG_PAGE + 8 * j), sum[r][j]);
        }
    }
}

static void index_scores(
    const uint8_t * nibbles, const uint8_t * ahead, int quads, const int8_t * digits, int stride, int rows,
    int32_t * out, int32_t * tops) {
    int32_t * const sums = out;
    for (int r = 0; r < rows; r += 2, digits += 2 * stride, out += 2 * PLONG_PAGE) {
        for (int l = 0; l < 2; l++) {
            if (rows - r == 1) {
                scores_rows(1, nibbles + l * PLONG_PAGE, ahead + l * PLONG_PAGE, quads, digits, stride, out + 32 * l);
            } else {
                scores_rows(2, nibbles + l * PLONG_PAGE, ahead + l * PLONG_PAGE, quads, digits, stride, out + 32 * l);
            }
        }
    }
    index_tops(sums, rows, tops);
}

#endif
