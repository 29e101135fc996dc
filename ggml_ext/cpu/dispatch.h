/* dispatch.h - the functions that ggml-cpu calls: whether it can run an op, the memory that it needs, and running it on
 * the thread pool. */
#ifndef PLONG_CPU_DISPATCH_H
#define PLONG_CPU_DISPATCH_H

#include "backend.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_compute_params;

const char *        plong_cpu_supports(const struct ggml_tensor * op);
struct plong_limits plong_cpu_limits(const struct plong_shape * shape, int n_threads);
size_t              plong_cpu_scratch(const struct ggml_tensor * op, int n_threads);
void                plong_cpu_compute(const struct ggml_compute_params * params, struct ggml_tensor * op);

/* The same for the op that chooses keys (choose.c). */
size_t plong_cpu_choose_scratch(const struct ggml_tensor * op, int n_threads);
void   plong_cpu_choose(const struct ggml_compute_params * params, struct ggml_tensor * op);

#ifdef __cplusplus
}
#endif

#endif
