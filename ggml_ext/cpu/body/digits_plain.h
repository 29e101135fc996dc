/* digits_plain.h - queries in the digits of a page of the index, and the largest sums of its keys, in plain C. */
#ifndef PLONG_CPU_BODY_DIGITS_PLAIN_H
#define PLONG_CPU_BODY_DIGITS_PLAIN_H

#include "cpu/body/index_rows.h"

static int32_t index_digits(
    const int16_t * q16, const int16_t * q12, const struct plong_index_page * page, int n, int8_t * digits) {
    int32_t sum = 0;
    for (int i = 0; i < n; i++) {
        digits[i] = (int8_t) (((q16[i] * (int32_t) page->step[i] >> 9) + 64) >> 7); /* as vectors do it */
        sum += q12[i] * page->lo[i];
    }
    return sum;
}

static int32_t index_above(const int8_t * digits, int n) {
    int32_t sum = 0;
    for (int i = 0; i < n; i++) {
        sum += digits[i] > 0 ? digits[i] : 0;
    }
    return sum;
}

static void index_tops(const int32_t * sums, int rows, int32_t * tops) {
    for (int i = 0; i < rows * (PLONG_PAGE / 16); i++, sums += 16) {
        tops[i] = sums[0];
        for (int j = 1; j < 16; j++) {
            tops[i] = sums[j] > tops[i] ? sums[j] : tops[i];
        }
    }
}

#endif
