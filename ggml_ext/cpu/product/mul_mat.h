/* mul_mat.h - the functions that ggml-cpu calls for products with quantized weights. */
#ifndef PLONG_CPU_MUL_MAT_H
#define PLONG_CPU_MUL_MAT_H

#include <stdbool.h>
#include <stddef.h>

#include "ggml_ext.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_compute_params;
struct ggml_tensor;

/* Whether a MUL_MAT or MUL_MAT_ID is computed here. */
bool plong_product_takes(const struct ggml_tensor * op);

/* Bytes of work memory that it needs, and the product itself. */
size_t plong_mul_mat_scratch(const struct ggml_tensor * op, int n_threads);
void   plong_mul_mat(const struct ggml_compute_params * params, struct ggml_tensor * op);

#ifdef __cplusplus
}
#endif

#endif
