/* scores_plain.h - keys of the index times queries, for instruction sets that have no part for it. */
#ifndef PLONG_CPU_BODY_SCORES_PLAIN_H
#define PLONG_CPU_BODY_SCORES_PLAIN_H

#include "cpu/body/digits_plain.h"

/* sums [PLONG_PAGE] of one row */
static void scores_row(const uint8_t * nibbles, int quads, const int8_t * digits, int32_t * sums) {
    memset(sums, 0, PLONG_PAGE * sizeof(*sums));
    for (int i = 0; i < 2 * quads; i++) {
        const int8_t *  d    = digits + 4 * (i / 2);
        const uint8_t * line = nibbles + (size_t) i * PLONG_PAGE;
        int32_t *       lo = sums + 32 * (i % 2), *hi = lo + 16;
        for (int j = 0; j < 16; j++) {
            const uint8_t * x = line + 4 * j;
            lo[j] += d[0] * (x[0] & 15) + d[1] * (x[1] & 15) + d[2] * (x[2] & 15) + d[3] * (x[3] & 15);
            hi[j] += d[0] * (x[0] >> 4) + d[1] * (x[1] >> 4) + d[2] * (x[2] >> 4) + d[3] * (x[3] >> 4);
        }
    }
}

static void index_scores(
    const uint8_t * nibbles, const uint8_t * ahead, int quads, struct index_rows q, struct index_sums out) {
    for (int i = 0; i < 2 * quads; i++) {
        __builtin_prefetch(ahead + i * PLONG_PAGE, 0, 3);
    }
    for (int r = 0; r < q.rows; r++) {
        scores_row(nibbles, quads, q.digits + r * q.stride, out.sums + r * PLONG_PAGE);
    }
    index_tops(out.sums, q.rows, out.tops);
}

#endif
