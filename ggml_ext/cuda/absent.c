/* absent.c - replaces the CUDA backend in builds without it. */
#include "backend.h"

static const char * supports(const struct ggml_tensor * op) {
    (void) op;
    return "no attention kernels for CUDA in this build";
}

static struct plong_limits limits(const struct plong_shape * shape, int n_threads) {
    (void) shape, (void) n_threads;
    return (struct plong_limits) { 0 }; /* never called for a backend that supports nothing */
}

const struct plong_backend plong_cuda_backend = { .name = "CUDA", .supports = supports, .limits = limits };
