/* index_rows.h - some rows of queries against a page of the index of keys. */
#ifndef PLONG_CPU_BODY_INDEX_ROWS_H
#define PLONG_CPU_BODY_INDEX_ROWS_H

#include "cpu/kernel.h"

/* The rows in the digits of a page: [rows][stride], from -127 to 127 */
struct index_rows {
    const int8_t * digits;
    int            stride, rows;
};

struct index_sums {
    int32_t * sums; /* [rows][PLONG_PAGE]: for each key the sum of digit * nibble over all dims */
    int32_t * tops; /* [rows][PLONG_PAGE / 16]: the largest of each 16 */
};

#endif
