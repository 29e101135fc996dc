/* table_generic.c - what hangs on the processor family: the kernels linked in, best first, and how memory is prefetched. */
#include "cpu/kernel.h"

extern const struct plong_kernel plong_kernel_scalar;

const struct plong_kernel * const plong_kernels[] = {
    &plong_kernel_scalar,
    NULL,
};

bool plong_one_stream(void) { return false; }
