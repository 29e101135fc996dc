/* table_arm.c - the kernels of this processor family, best first, and how it prefetches memory. */
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
