/* digits_plain.h - queries in the digits of a page of the index, and what its bounds allow, in plain C. */
#ifndef PLONG_CPU_BODY_DIGITS_PLAIN_H
#define PLONG_CPU_BODY_DIGITS_PLAIN_H

#include "cpu/body/index_rows.h"

static void index_digits(
    struct index_queries q, const struct plong_index_page * page, int dims, int8_t * digits, int32_t * starts) {
    for (int r = 0; r < q.rows; r++) {
        const int16_t *q16 = q.q16 + (size_t) r * q.stride, *q12 = q.q12 + (size_t) r * q.stride;
        int8_t *       to  = digits + (size_t) r * q.stride;
        int32_t        sum = 0;
        for (int i = 0; i < dims; i++) {
            to[i] = (int8_t) (((q16[i] * (int32_t) page->step[i] >> 9) + 64) >> 7); /* as vectors do it */
            sum += q12[i] * page->lo[i];
        }
        starts[r] = sum;
    }
}

static void index_bounds(
    struct index_queries q, const struct plong_index_page * pages, int dims, struct index_bounds out) {
    for (int r = 0; r < q.rows; r++) {
        const int16_t * q12 = q.q12 + (size_t) r * q.stride;
        for (int p = 0; p < INDEX_PAGES; p++) {
            int32_t start = 0, above = 0;
            for (int i = 0; i < dims; i++) {
                start += q12[i] * pages[p].lo[i];
                above += (q12[i] > 0 ? q12[i] : 0) * pages[p].step[i];
            }
            out.starts[r * INDEX_PAGES + p] = start;
            out.above[r * INDEX_PAGES + p]  = above;
        }
    }
}

/* tops [rows]: the largest of a page's sums */
static void index_tops(const int32_t * sums, int rows, int32_t * tops) {
    for (int r = 0; r < rows; r++, sums += PLONG_PAGE) {
        int32_t most = sums[0];
        for (int j = 1; j < PLONG_PAGE; j++) {
            most = sums[j] > most ? sums[j] : most;
        }
        tops[r] = most;
    }
}

#endif
