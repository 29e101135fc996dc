/* table_arm.c - what hangs on the processor family: the kernels linked in, best first, and how memory is prefetched. */
#include "cpu/kernel.h"

#ifdef PLONG_NEONBF16
extern const struct plong_kernel plong_kernel_neonbf16;
#endif
extern const struct plong_kernel plong_kernel_neon;
extern const struct plong_kernel plong_kernel_scalar;

const struct plong_kernel * const plong_kernels[] = {
#ifdef PLONG_NEONBF16
    &plong_kernel_neonbf16,
#endif
    &plong_kernel_neon,
    &plong_kernel_scalar,
    NULL,
};

bool plong_one_stream(void) { return false; }
