/* isa_scalar.c - the tile body for portable C, for any processor. */
#define PLONG_ISA_STRING "scalar"
#define PLONG_NAME(x)    x##_scalar

#include <stdbool.h>

static bool isa_usable(void) { return true; }

#include "tile.h"
