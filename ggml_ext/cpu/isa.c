/* isa.c - decides which instruction set runs: the best one that this processor has, or the one that was forced. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/kernel.h"
#include "ggml-impl.h"

#define MAX_ISAS 8

static _Atomic(const struct plong_kernel *) chosen;
static atomic_llong                         tiles_run[MAX_ISAS];

static int kernel_index(const struct plong_kernel * kernel) {
    int i = 0;
    while (plong_kernels[i] != kernel) {
        i++;
    }
    return i;
}

static const struct plong_kernel * best_kernel(void) {
    for (int i = 0; plong_kernels[i]; i++) {
        if (plong_kernels[i]->usable()) {
            return plong_kernels[i];
        }
    }
    return NULL;
}

static const struct plong_kernel * kernel_named(const char * name) {
    for (int i = 0; plong_kernels[i]; i++) {
        if (strcmp(plong_kernels[i]->name, name) == 0) {
            return plong_kernels[i]->usable() ? plong_kernels[i] : NULL;
        }
    }
    return NULL;
}

const struct plong_kernel * plong_kernel_in_use(void) {
    const struct plong_kernel * kernel = atomic_load(&chosen);
    if (!kernel) {
        const char * name = getenv("PLLAMA_ISA");
        kernel            = name && *name ? kernel_named(name) : best_kernel();
        if (!kernel) {
            GGML_LOG_WARN(
                "PLLAMA_ISA=%s is unknown or not usable on this processor: using %s\n", name, best_kernel()->name);
            kernel = best_kernel();
        }
        atomic_store(&chosen, kernel);
    }
    return kernel;
}

const char * plong_cpu_isa_name(int i) {
    for (int j = 0; j < i; j++) {
        if (!plong_kernels[j]) {
            return NULL;
        }
    }
    return i >= 0 && plong_kernels[i] ? plong_kernels[i]->name : NULL;
}

bool plong_cpu_isa_usable(int i) { return plong_kernels[i]->usable(); }

bool plong_cpu_isa_force(const char * name) {
    const struct plong_kernel * kernel = name && *name ? kernel_named(name) : best_kernel();
    if (kernel) {
        atomic_store(&chosen, kernel);
    }
    return kernel != NULL;
}

const struct plong_kernel * plong_kernel_at(int32_t precision) {
    const struct plong_kernel * kernel = plong_kernel_in_use();
    return precision == PLONG_PRECISION_F32 ? kernel->f32 : kernel;
}

const char * plong_cpu_isa(int32_t precision) { return plong_kernel_at(precision)->name; }

int64_t plong_cpu_isa_tiles(int i) { return atomic_load(&tiles_run[i]); }

void plong_kernel_count(const struct plong_kernel * kernel, int64_t tiles) {
    atomic_fetch_add(&tiles_run[kernel_index(kernel)], tiles);
}
