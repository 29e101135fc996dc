/* scores_plain.h - keys of the index times queries, for instruction sets that have no part for it. */
#ifndef PLONG_CPU_BODY_SCORES_PLAIN_H
#define PLONG_CPU_BODY_SCORES_PLAIN_H

#include "cpu/body/digits_plain.h"

static void index_scores(
    const uint8_t * nibbles, const uint8_t * ahead, int quads, const int8_t * digits, int stride, int rows,
    int32_t * out, int32_t * tops) {
    int32_t * const sums = out;
    for (int i = 0; i < 2 * quads; i++) {
        __builtin_prefetch(ahead + i * PLONG_PAGE, 0, 3);
    }
    for (int r = 0; r < rows; r++, digits += stride, out += PLONG_PAGE) {
        memset(out, 0, PLONG_PAGE * sizeof(*out));
        for (int q = 0; q < quads; q++) {
            const int8_t * d = digits + 4 * q;
            for (int l = 0; l < 2; l++) {
                const uint8_t * line = nibbles + (size_t) (2 * q + l) * PLONG_PAGE;
                int32_t *       lo = out + 32 * l, *hi = lo + 16;
                for (int j = 0; j < 16; j++) {
                    const uint8_t * x = line + 4 * j;
                    lo[j] += d[0] * (x[0] & 15) + d[1] * (x[1] & 15) + d[2] * (x[2] & 15) + d[3] * (x[3] & 15);
                    hi[j] += d[0] * (x[0] >> 4) + d[1] * (x[1] >> 4) + d[2] * (x[2] >> 4) + d[3] * (x[3] >> 4);
                }
            }
        }
    }
    index_tops(sums, rows, tops);
}

#endif
