/* table_generic.c - the kernels of this processor family, best first, and how it prefetches memory. */
#include "cpu/kernel.h"

extern const struct plong_kernel plong_kernel_scalar;

const struct plong_kernel * const plong_kernels[] = {
    &plong_kernel_scalar,
    NULL,
};

bool plong_one_stream(void) { return false; }
