/* isa_neon.c - the tile body for 64-bit Arm. */
#define PLONG_ISA_NEON
#define PLONG_ISA_STRING "neon"
#define PLONG_NAME(x)    x##_neon

#include <stdbool.h>

static bool isa_usable(void) { return true; /* part of every AArch64 processor */ }

#include "tile.h"
