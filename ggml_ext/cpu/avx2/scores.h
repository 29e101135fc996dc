/* scores.h - keys of the index times queries, by AVX2's products of pairs. */
#ifndef PLONG_CPU_AVX2_SCORES_H
#define PLONG_CPU_AVX2_SCORES_H

#include <immintrin.h>

#include "cpu/body/index_rows.h"

PLONG_INLINE __m256i words(const uint8_t * bytes) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *) bytes));
}

/* The four sums over lanes */
PLONG_INLINE __m128i sums_of_four(__m256i a, __m256i b, __m256i c, __m256i d) {
    const __m256i x = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    return _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

PLONG_INLINE int32_t sum_of_lanes(__m256i a) {
    return _mm_cvtsi128_si32(sums_of_four(a, _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()));
}

static void index_digits(
    struct index_queries q, const struct plong_index_page * page, int dims, int8_t * digits, int32_t * starts) {
    const __m256i half = _mm256_set1_epi16(64);
    for (int r = 0; r < q.rows; r++) {
        const size_t at  = (size_t) r * q.stride;
        __m256i      sum = _mm256_setzero_si256();
        for (int i = 0; i < dims; i += 16) {
            const __m256i step = _mm256_slli_epi16(words(page->step + i), 7);
            const __m256i x    = _mm256_mulhi_epi16(_mm256_loadu_si256((const __m256i *) (q.q16 + at + i)), step);
            const __m256i y    = _mm256_srai_epi16(_mm256_add_epi16(x, half), 7);
            const __m256i lo   = _mm256_loadu_si256((const __m256i *) (page->lo + i));
            const __m128i z    = _mm_packs_epi16(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
            _mm_storeu_si128((__m128i *) (digits + at + i), z);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_loadu_si256((const __m256i *) (q.q12 + at + i)), lo));
        }
        starts[r] = sum_of_lanes(sum);
    }
}

/* Four pages, for a row */
PLONG_INLINE void bounds_row(
    const int16_t * q12, const struct plong_index_page * pages, int dims, int32_t * starts, int32_t * above) {
    __m256i lo[4], up[4];
    for (int p = 0; p < 4; p++) {
        lo[p] = up[p] = _mm256_setzero_si256();
    }
    for (int i = 0; i < dims; i += 16) {
        const __m256i x = _mm256_loadu_si256((const __m256i *) (q12 + i));
        const __m256i y = _mm256_max_epi16(x, _mm256_setzero_si256());
        for (int p = 0; p < 4; p++) {
            const __m256i l = _mm256_loadu_si256((const __m256i *) (pages[p].lo + i));
            lo[p]           = _mm256_add_epi32(lo[p], _mm256_madd_epi16(x, l));
            up[p]           = _mm256_add_epi32(up[p], _mm256_madd_epi16(y, words(pages[p].step + i)));
        }
    }
    _mm_storeu_si128((__m128i *) starts, sums_of_four(lo[0], lo[1], lo[2], lo[3]));
    _mm_storeu_si128((__m128i *) above, sums_of_four(up[0], up[1], up[2], up[3]));
}

static void index_bounds(
    struct index_queries q, const struct plong_index_page * pages, int dims, struct index_bounds out) {
    for (int r = 0; r < q.rows; r++) {
        const int at = r * INDEX_PAGES;
        bounds_row(q.q12 + (size_t) r * q.stride, pages, dims, out.starts + at, out.above + at);
    }
}

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
    for (int r = 0; r < rows; r++) {
        const __m256i * x    = (const __m256i *) (out.sums + r * PLONG_PAGE);
        __m256i         most = _mm256_loadu_si256(x);
        for (int j = 1; j < PLONG_PAGE / 8; j++) {
            most = _mm256_max_epi32(most, _mm256_loadu_si256(x + j));
        }
        __m128i half = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
        half         = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
        half         = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1));
        out.tops[r]  = _mm_cvtsi128_si32(half);
    }
}

#endif
