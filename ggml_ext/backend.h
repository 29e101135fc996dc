/*
 * backend.h - what a backend provides, which the graph uses for the layers that run on it. Each backend is a folder
 * with four functions:
 *
 *     plong_X_supports    the reason why it does not run an op, or NULL
 *     plong_X_limits      the sizes that it wants for its work
 *     plong_X_scratch     memory that a call needs
 *     plong_X_compute     runs it
 *
 * The last two are called by ggml's own backend, with ggml's types. A backend that a build lacks is replaced by
 * absent.c.
 */
#ifndef PLONG_BACKEND_H
#define PLONG_BACKEND_H

#include "work.h"

#ifdef __cplusplus
extern "C" {
#endif

struct plong_backend {
    const char * name; /* the name of its devices in ggml's registry */
    /* NULL if it can run this op, of which src[0..2] and the parameters are set, else one line with the reason.
     * plong_backend_supports() has already refused what no backend can run. */
    const char * (*supports)(const struct ggml_tensor * op);
    /* n_threads: of the call, for backends with threads. */
    struct plong_limits (*limits)(const struct plong_shape * shape, int n_threads);
};

PLONG_API const struct plong_backend plong_cpu_backend;
PLONG_API const struct plong_backend plong_cuda_backend;
PLONG_API const struct plong_backend plong_metal_backend;

/* Why a backend cannot run the op on these tensors; NULL if it can. */
PLONG_API const char * plong_backend_supports(
    const struct plong_backend * backend, struct ggml_tensor * q, struct ggml_tensor * k, struct ggml_tensor * v,
    const struct plong_attn_params * params);

#ifdef __cplusplus
}
#endif

#endif
