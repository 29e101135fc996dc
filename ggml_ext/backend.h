/*
 * backend.h - what the graph asks of the backend that runs a layer. Each is a folder with the same four names:
 *
 *     plong_X_supports    the reason why it does not run an op, or NULL
 *     plong_X_limits      how it wants its work cut
 *     plong_X_scratch     memory that a call needs
 *     plong_X_compute     runs it
 *
 * The last two are called by ggml's own backend, in its own terms. A backend that a build lacks is a file that says so.
 */
#ifndef PLONG_BACKEND_H
#define PLONG_BACKEND_H

#include "work.h"

#ifdef __cplusplus
extern "C" {
#endif

struct plong_backend {
    const char * name; /* of its devices in ggml's registry */
    /* NULL when it runs such an op, whose src[0..2] and parameters are set, else one line that says why not. What every
     * backend refuses is checked before: plong_attn_check(). */
    const char * (*supports)(const struct ggml_tensor * op);
    /* n_threads: of the call, for backends that have some. */
    struct plong_limits (*limits)(const struct plong_shape * shape, int n_threads);
};

PLONG_API const struct plong_backend plong_cpu_backend;
PLONG_API const struct plong_backend plong_cuda_backend;
PLONG_API const struct plong_backend plong_metal_backend;

/* Why a backend does not run the op on such tensors; NULL when it does. */
PLONG_API const char * plong_backend_supports(
    const struct plong_backend * backend, struct ggml_tensor * q, struct ggml_tensor * k, struct ggml_tensor * v,
    const struct plong_attn_params * params);

#ifdef __cplusplus
}
#endif

#endif
