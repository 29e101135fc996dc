/* neonbf16.c - the tile body for 64-bit Arm with bf16 matrix products: Arm v8.6, Neoverse from V1, Apple from M2 on. */
#define PLONG_ISA_STRING "neonbf16"
#define PLONG_NAME(x)    x##_neonbf16
#define PLONG_F32        plong_kernel_neon /* the kernel that runs when float32 is requested */

#include <stdbool.h>

#include "cpu/kernel.h"

extern const struct plong_kernel plong_kernel_neon;

#if defined(__APPLE__)

#include <sys/sysctl.h>

static bool isa_usable(void) {
    int    has  = 0;
    size_t size = sizeof(has);
    return sysctlbyname("hw.optional.arm.FEAT_BF16", &has, &size, NULL, 0) == 0 && has != 0;
}

#elif defined(__linux__)

#include <sys/auxv.h>

#define HAS_BF16 (1ul << 14) /* HWCAP2_BF16, which older headers do not name */

static bool isa_usable(void) { return (getauxval(AT_HWCAP2) & HAS_BF16) != 0; }

#else

static bool isa_usable(void) { return false; /* there is no way to find out */ }

#endif

#include "cpu/simd/neon.h"
#include "cpu/neonbf16/wide.h"
#include "cpu/body/narrow_none.h"
#include "cpu/body/latent_none.h"
#include "cpu/body/scores_plain.h"
#include "cpu/body/tile.h"
