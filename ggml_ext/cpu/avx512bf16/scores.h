/* scores.h - keys of the index times queries, by AVX-512's products of four bytes (VNNI). */
#ifndef PLONG_CPU_AVX512BF16_SCORES_H
#define PLONG_CPU_AVX512BF16_SCORES_H

#include "cpu/body/index_rows.h"

PLONG_INLINE int32_t
index_digits(const int16_t * q16, const int16_t * q12, const struct plong_index_page * page, int n, int8_t * digits) {
    const __m512i half = _mm512_set1_epi16(64);
    __m512i       sum  = _mm512_setzero_si512();
    for (int i = 0; i < n; i += 32) {
        const __m512i step = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *) (page->step + i)));
        const __m512i x    = _mm512_mulhi_epi16(_mm512_loadu_si512(q16 + i), _mm512_slli_epi16(step, 7));
        const __m512i y    = _mm512_srai_epi16(_mm512_add_epi16(x, half), 7);
        _mm256_storeu_si256((__m256i *) (digits + i), _mm512_cvtepi16_epi8(y));
        sum = _mm512_dpwssd_epi32(sum, _mm512_loadu_si512(q12 + i), _mm512_loadu_si512(page->lo + i));
    }
    return _mm512_reduce_add_epi32(sum);
}

PLONG_INLINE int32_t index_above(const int8_t * digits, int n) {
    const __m256i zero = _mm256_setzero_si256(), one = _mm256_set1_epi8(1);
    __m256i       sum = zero;
    for (int i = 0; i < n; i += 32) {
        const __m256i x = _mm256_max_epi8(_mm256_loadu_si256((const __m256i *) (digits + i)), zero);
        sum             = _mm256_dpbusd_epi32(sum, x, one);
    }
    return _mm512_reduce_add_epi32(_mm512_zextsi256_si512(sum));
}

/* The first rows, up to 4; sums [rows][4] are 16 keys each. */
PLONG_INLINE void scores_rows(
    const int rows, const uint8_t * nibbles, const uint8_t * ahead, int quads, const struct index_rows q,
    const struct index_sums out) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i       sum[4][4];
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < 4; j++) {
            sum[r][j] = _mm512_setzero_si512();
        }
    }
    for (int i = 0; i < quads; i++) {
        const size_t at = (size_t) i * 2 * PLONG_PAGE;
        __builtin_prefetch(ahead + at, 0, 3);
        __builtin_prefetch(ahead + at + PLONG_PAGE, 0, 3);
        const __m512i a = _mm512_loadu_si512(nibbles + at), b = _mm512_loadu_si512(nibbles + at + PLONG_PAGE);
        const __m512i x[4] = {
            _mm512_and_si512(a, low),
            _mm512_and_si512(_mm512_srli_epi16(a, 4), low),
            _mm512_and_si512(b, low),
            _mm512_and_si512(_mm512_srli_epi16(b, 4), low),
        };
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, q.digits + r * q.stride + 4 * i, sizeof(four));
            const __m512i y = _mm512_set1_epi32(four);
            for (int j = 0; j < 4; j++) {
                sum[r][j] = _mm512_dpbusd_epi32(sum[r][j], x[j], y);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < 4; j++) {
            _mm512_storeu_si512(out.sums + r * PLONG_PAGE + 16 * j, sum[r][j]);
            out.tops[r * (PLONG_PAGE / 16) + j] = _mm512_reduce_max_epi32(sum[r][j]);
        }
    }
}

static void index_scores(
    const uint8_t * nibbles, const uint8_t * ahead, int quads, struct index_rows q, struct index_sums out) {
    for (; q.rows > 0; q.rows -= 4) {
        switch (q.rows) {
            case 1: scores_rows(1, nibbles, ahead, quads, q, out); break;
            case 2: scores_rows(2, nibbles, ahead, quads, q, out); break;
            case 3: scores_rows(3, nibbles, ahead, quads, q, out); break;
            default: scores_rows(4, nibbles, ahead, quads, q, out); break;
        }
        q.digits += 4 * q.stride;
        out.sums += 4 * PLONG_PAGE;
        out.tops += 4 * (PLONG_PAGE / 16);
    }
}

#endif
