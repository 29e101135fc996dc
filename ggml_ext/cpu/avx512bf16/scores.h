/* scores.h - keys of the index times queries, by AVX-512's products of bytes and words (VNNI). */
#ifndef PLONG_CPU_AVX512BF16_SCORES_H
#define PLONG_CPU_AVX512BF16_SCORES_H

#include "cpu/body/index_rows.h"

PLONG_INLINE __m512i words(const uint8_t * bytes) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *) bytes));
}

/* The four sums over lanes */
PLONG_INLINE __m128i sums_of_four(const __m512i * x) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
    const __m512i y  = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i z  = _mm256_add_epi32(_mm512_castsi512_si256(y), _mm512_extracti64x4_epi64(y, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(z), _mm256_extracti128_si256(z, 1));
}

/* The first rows, up to 4 */
PLONG_INLINE void digits_rows(
    const int rows, const struct index_queries q, const struct plong_index_page * page, int dims, int8_t * digits,
    int32_t * starts) {
    const __m512i half = _mm512_set1_epi16(64);
    __m512i       sum[4];
    for (int r = 0; r < 4; r++) {
        sum[r] = _mm512_setzero_si512();
    }
    for (int i = 0; i < dims; i += 32) {
        const __m512i step = _mm512_slli_epi16(words(page->step + i), 7), lo = _mm512_loadu_si512(page->lo + i);
        for (int r = 0; r < rows; r++) {
            const size_t  at = (size_t) r * q.stride + i;
            const __m512i x  = _mm512_mulhi_epi16(_mm512_loadu_si512(q.q16 + at), step);
            const __m512i y  = _mm512_srai_epi16(_mm512_add_epi16(x, half), 7);
            _mm256_storeu_si256((__m256i *) (digits + at), _mm512_cvtepi16_epi8(y));
            sum[r] = _mm512_dpwssd_epi32(sum[r], _mm512_loadu_si512(q.q12 + at), lo);
        }
    }
    _mm_mask_storeu_epi32(starts, (__mmask8) ((1 << rows) - 1), sums_of_four(sum));
}

static void index_digits(
    struct index_queries q, const struct plong_index_page * page, int dims, int8_t * digits, int32_t * starts) {
    for (; q.rows > 0; q.rows -= 4) {
        switch (q.rows) {
            case 1: digits_rows(1, q, page, dims, digits, starts); break;
            case 2: digits_rows(2, q, page, dims, digits, starts); break;
            case 3: digits_rows(3, q, page, dims, digits, starts); break;
            default: digits_rows(4, q, page, dims, digits, starts); break;
        }
        q.q16 += 4 * q.stride;
        q.q12 += 4 * q.stride;
        digits += 4 * q.stride;
        starts += 4;
    }
}

/* lo, up [rows][4 pages] += 32 dims from i on */
PLONG_INLINE void bounds_dims(
    const int rows, const int16_t * q12, int stride, const struct plong_index_page * pages, int i, __m512i (*lo)[4],
    __m512i (*up)[4]) {
    __m512i x[2], y[2];
    for (int r = 0; r < rows; r++) {
        x[r] = _mm512_loadu_si512(q12 + r * stride + i);
        y[r] = _mm512_max_epi16(x[r], _mm512_setzero_si512());
    }
    for (int p = 0; p < 4; p++) {
        const __m512i l = _mm512_loadu_si512(pages[p].lo + i), s = words(pages[p].step + i);
        for (int r = 0; r < rows; r++) {
            lo[r][p] = _mm512_dpwssd_epi32(lo[r][p], x[r], l);
            up[r][p] = _mm512_dpwssd_epi32(up[r][p], y[r], s);
        }
    }
}

/* The first rows, up to 2 */
PLONG_INLINE void bounds_rows(
    const int rows, const int16_t * q12, int stride, const struct plong_index_page * pages, int dims, int32_t * starts,
    int32_t * above) {
    __m512i lo[2][4], up[2][4];
    int     i = 0;
    for (int r = 0; r < rows; r++) {
        for (int p = 0; p < 4; p++) {
            lo[r][p] = up[r][p] = _mm512_setzero_si512();
        }
    }
    for (; i + 128 <= dims; i += 128) {
        bounds_dims(rows, q12, stride, pages, i, lo, up);
        bounds_dims(rows, q12, stride, pages, i + 32, lo, up);
        bounds_dims(rows, q12, stride, pages, i + 64, lo, up);
        bounds_dims(rows, q12, stride, pages, i + 96, lo, up);
    }
    for (; i < dims; i += 32) {
        bounds_dims(rows, q12, stride, pages, i, lo, up);
    }
    for (int r = 0; r < rows; r++) {
        _mm_storeu_si128((__m128i *) (starts + r * INDEX_PAGES), sums_of_four(lo[r]));
        _mm_storeu_si128((__m128i *) (above + r * INDEX_PAGES), sums_of_four(up[r]));
    }
}

static void index_bounds(
    struct index_queries q, const struct plong_index_page * pages, int dims, struct index_bounds out) {
    for (int r = 0; r < q.rows; r += 2) {
        const int       at  = r * INDEX_PAGES;
        const int16_t * q12 = q.q12 + (size_t) r * q.stride;
        if (r + 1 < q.rows) {
            bounds_rows(2, q12, q.stride, pages, dims, out.starts + at, out.above + at);
        } else {
            bounds_rows(1, q12, q.stride, pages, dims, out.starts + at, out.above + at);
        }
    }
}

/* sum[rows][4] of 16 keys each += the dims of a quad */
PLONG_INLINE void scores_quad(
    const int rows, const uint8_t * nibbles, const uint8_t * ahead, const struct index_rows q, int quad,
    __m512i (*sum)[4]) {
    const __m512i low = _mm512_set1_epi8(15);
    const size_t  at  = (size_t) quad * 2 * PLONG_PAGE;
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
        memcpy(&four, q.digits + r * q.stride + 4 * quad, sizeof(four));
        const __m512i y = _mm512_set1_epi32(four);
        for (int j = 0; j < 4; j++) {
            sum[r][j] = _mm512_dpbusd_epi32(sum[r][j], x[j], y);
        }
    }
}

/* The first rows, up to 4 */
PLONG_INLINE void scores_rows(
    const int rows, const uint8_t * nibbles, const uint8_t * ahead, int quads, const struct index_rows q,
    const struct index_sums out) {
    __m512i sum[4][4];
    int     i = 0;
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < 4; j++) {
            sum[r][j] = _mm512_setzero_si512();
        }
    }
    for (; i + 4 <= quads; i += 4) { /* gcc 12 copies all sums once per iteration */
        scores_quad(rows, nibbles, ahead, q, i, sum);
        scores_quad(rows, nibbles, ahead, q, i + 1, sum);
        scores_quad(rows, nibbles, ahead, q, i + 2, sum);
        scores_quad(rows, nibbles, ahead, q, i + 3, sum);
    }
    for (; i < quads; i++) {
        scores_quad(rows, nibbles, ahead, q, i, sum);
    }
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < 4; j++) {
            _mm512_storeu_si512(out.sums + r * PLONG_PAGE + 16 * j, sum[r][j]);
        }
        const __m512i a = _mm512_max_epi32(sum[r][0], sum[r][1]), b = _mm512_max_epi32(sum[r][2], sum[r][3]);
        out.tops[r] = _mm512_reduce_max_epi32(_mm512_max_epi32(a, b));
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
        out.tops += 4;
    }
}

#endif
