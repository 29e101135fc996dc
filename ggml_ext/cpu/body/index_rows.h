/* index_rows.h - some rows of queries against pages of the index of keys. */
#ifndef PLONG_CPU_BODY_INDEX_ROWS_H
#define PLONG_CPU_BODY_INDEX_ROWS_H

#include "cpu/kernel.h"

#define INDEX_PAGES 4 /* whose bounds are looked at together */

/* The rows in 16 and in 12 bits: [rows][stride] */
struct index_queries {
    const int16_t *q16, *q12;
    int            stride, rows;
};

/* The rows in the digits of a page: [rows][stride], from -127 to 127 */
struct index_rows {
    const int8_t * digits;
    int            stride, rows;
};

struct index_sums {
    int32_t * sums; /* [rows][PLONG_PAGE]: for each key the sum of digit * nibble over all dims */
    int32_t * tops; /* [rows]: the largest of them */
};

/* Of each page, [rows][INDEX_PAGES] */
struct index_bounds {
    int32_t * starts; /* the sum of q12 * lo */
    int32_t * above;  /* the sum of q12 * step over the dims where q12 > 0 */
};

#endif
