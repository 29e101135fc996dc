/* table_x86.c - what hangs on the processor family: the kernels linked in, best first, and how memory is prefetched. */
#include "cpu/kernel.h"

#ifdef PLONG_AMX
extern const struct plong_kernel plong_kernel_amx;
#endif
#ifdef PLONG_AVX512BF16
extern const struct plong_kernel plong_kernel_avx512bf16;
#endif
extern const struct plong_kernel plong_kernel_avx512;
extern const struct plong_kernel plong_kernel_avx2;
extern const struct plong_kernel plong_kernel_scalar;

const struct plong_kernel * const plong_kernels[] = {
#ifdef PLONG_AMX
    &plong_kernel_amx,
#endif
#ifdef PLONG_AVX512BF16
    &plong_kernel_avx512bf16,
#endif
    &plong_kernel_avx512,     &plong_kernel_avx2, &plong_kernel_scalar, NULL,
};

bool plong_one_stream(void) {
    __builtin_cpu_init();
    return __builtin_cpu_is("amd");
}
