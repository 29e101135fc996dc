/* table_generic.c - the kernels linked in for this processor family, best first. */
#include "attn.h"

extern const struct plong_kernel plong_kernel_scalar;

const struct plong_kernel * const plong_kernels[] = {
    &plong_kernel_scalar,
    NULL,
};
