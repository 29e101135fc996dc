/* dispatch.h - what ggml-cpu calls: the op's work size and its computation on the thread pool. */
#ifndef PLONG_CPU_DISPATCH_H
#define PLONG_CPU_DISPATCH_H

#include "ggml_ext.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_compute_params;

size_t plong_cpu_work_size(const struct ggml_tensor * op, int n_threads);
bool   plong_cpu_supports(const struct ggml_tensor * op);
void   plong_cpu_compute(const struct ggml_compute_params * params, struct ggml_tensor * op);

#ifdef __cplusplus
}
#endif

#endif
