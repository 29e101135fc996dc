/* amx.c - the tile body for x86-64 with AMX bf16: tiles, and AVX-512 for the rest. Linux requires a process to request
 * permission to use tiles. */
#define PLONG_ISA_STRING "amx"
#define PLONG_NAME(x)    x##_amx
#define PLONG_F32        plong_kernel_avx512 /* the kernel that runs when float32 is requested */

#include <cpuid.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cpu/kernel.h"

extern const struct plong_kernel plong_kernel_avx512;
extern const struct plong_kernel plong_kernel_avx512bf16;

#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA  18

static bool isa_usable(void) {
    unsigned a, b, c, d;
    if (!plong_kernel_avx512bf16.usable()) {
        return false;
    }
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & 1u << 22) || !(d & 1u << 24) || !(d & 1u << 25)) {
        /* AMX-BF16, AMX-TILE, AMX-INT8 */
        return false;
    }
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

#include "cpu/simd/avx512.h"
#include "cpu/amx/wide.h"
#include "cpu/amx/narrow_logits.h"
#include "cpu/amx/narrow_values.h"
#include "cpu/avx512/narrow_jobs.h"
#include "cpu/body/latent_none.h"
#include "cpu/avx512bf16/scores.h"
#include "cpu/body/tile.h"
