/* table_x86.c - the kernels of this processor family, best first, and how it prefetches memory. */
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
