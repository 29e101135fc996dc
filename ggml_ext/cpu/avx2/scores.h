/* scores.h - keys of the index times queries, by AVX2's products of byte pairs. */
#ifndef PLONG_CPU_AVX2_SCORES_H
#define PLONG_CPU_AVX2_SCORES_H

#include <immintrin.h>

#include "cpu/body/digits_plain.h"

/* sum[8] += four nibbles of each of 8 keys times four digits; two products are at most 2 * 15 * 127 */
PLONG_INLINE __m256i scores_four(__m256i sum, __m256i nibbles, __m256i digits) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(nibbles, digits), _mm256_set1_epi16(1)));
}

/* One line of a page, 32 keys, for the first rows, up to 2 */
PLONG_INLINE void scores_rows(
    const int rows, const uint8_t * nibbles, const uint8_t * ahead, int quads, const struct index_rows q,
    int32_t * sums) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256i       sum[2][4];
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < 4; j++) {
            sum[r][j] = _mm256_setzero_si256();
        }
    }
    for (int i = 0; i < quads; i++) {
        const size_t  at   = (size_t) i * 2 * PLONG_PAGE;
        const __m256i a    = _mm256_loadu_si256((const __m256i *) (nibbles + at));
        const __m256i b    = _mm256_loadu_si256((const __m256i *) (nibbles + at + 32));
        const __m256i x[4] = {
            _mm256_and_si256(a, low),
            _mm256_and_si256(b, low),
            _mm256_and_si256(_mm256_srli_epi16(a, 4), low),
            _mm256_and_si256(_mm256_srli_epi16(b, 4), low),
        };
        __builtin_prefetch(ahead + at, 0, 3);
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, q.digits + r * q.stride + 4 * i, sizeof(four));
            const __m256i y = _mm256_set1_epi32(four);
            for (int j = 0; j < 4; j++) {
                sum[r][j] = scores_four(sum[r][j], x[j], y);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < 4; j++) {
            _mm256_storeu_si256((__m256i *) (sums + r * PLONG_PAGE + 8 * j), sum[r][j]);
        }
    }
}

static void index_scores(
    const uint8_t * nibbles, const uint8_t * ahead, int quads, struct index_rows q, struct index_sums out) {
    const int rows = q.rows;
    int32_t * sums = out.sums;
    for (; q.rows > 0; q.rows -= 2, q.digits += 2 * q.stride, sums += 2 * PLONG_PAGE) {
        for (int l = 0; l < 2; l++) {
            const size_t at = (size_t) l * PLONG_PAGE;
            if (q.rows == 1) {
                scores_rows(1, nibbles + at, ahead + at, quads, q, sums + 32 * l);
            } else {
                scores_rows(2, nibbles + at, ahead + at, quads, q, sums + 32 * l);
            }
        }
    }
    index_tops(out.sums, rows, out.tops);
}

#endif
