/*
 * few.h - logits and P*V for a few query rows (decode): each K and V row is read once, straight from the cache in its
 * own type, for all rows. `rows_of`, `keys_of`, `type` are constants at every call, so the loops unroll.
 */
#ifndef PLONG_CPU_FEW_H
#define PLONG_CPU_FEW_H

#include "attn.h"
#include "simd.h"

#define FEW_ROWS   8 /* most rows in one pass */
#define FEW_INLINE static inline __attribute__((always_inline))

FEW_INLINE vf few_load(const int32_t type, const void * row, int i) {
    return type == GGML_TYPE_F16    ? vf_f16((const uint16_t *) row + i)
           : type == GGML_TYPE_BF16 ? vf_bf16((const uint16_t *) row + i)
                                    : vf_load((const float *) row + i);
}

/* s[rows_of][PLONG_KEYS] = q[rows_of][d] * k^T, for keys_of keys at a time so that enough sums are in flight */
FEW_INLINE void few_logits_block(
    const int rows_of, const int keys_of, const int32_t type, const void * const * k, int d, const float * q, int dq,
    float * s) {
    vf sum[FEW_ROWS * 4];
    for (int i = 0; i < rows_of * keys_of; i++) {
        sum[i] = vf_zero();
    }
    for (int i = 0; i < d; i += VW) {
        vf x[4];
        for (int j = 0; j < keys_of; j++) {
            x[j] = few_load(type, k[j], i);
        }
        for (int r = 0; r < rows_of; r++) {
            const vf y = vf_load(q + r * dq + i);
            for (int j = 0; j < keys_of; j++) {
                sum[r * keys_of + j] = vf_fma(x[j], y, sum[r * keys_of + j]);
            }
        }
    }
    for (int r = 0; r < rows_of; r++) {
        for (int j = 0; j < keys_of; j++) {
            s[r * PLONG_KEYS + j] = vf_sum(sum[r * keys_of + j]);
        }
    }
}

FEW_INLINE void few_logits_rows(
    const int rows_of, const int32_t type, const void * const * k, int n, int d, const float * q, int dq, float * s) {
    const int keys_of = rows_of <= 2 ? 4 : rows_of <= 4 ? 2 : 1;
    int       j       = 0;
    for (; j + keys_of <= n; j += keys_of) {
        few_logits_block(rows_of, keys_of, type, k + j, d, q, dq, s + j);
    }
    for (; j < n; j++) {
        few_logits_block(rows_of, 1, type, k + j, d, q, dq, s + j);
    }
}

/* acc[rows_of][dv] += p[rows_of][n] * v, vectors_of vectors of each row at a time */
FEW_INLINE void few_values_block(
    const int rows_of, const int vectors_of, const int32_t type, const void * const * v, int n, int at, const float * p,
    float * acc, int dv) {
    vf sum[16];
    for (int r = 0; r < rows_of; r++) {
        for (int i = 0; i < vectors_of; i++) {
            sum[r * vectors_of + i] = vf_load(acc + r * dv + at + i * VW);
        }
    }
    for (int j = 0; j < n; j++) {
        vf x[8];
        for (int i = 0; i < vectors_of; i++) {
            x[i] = few_load(type, v[j], at + i * VW);
        }
        for (int r = 0; r < rows_of; r++) {
            const vf y = vf_set1(p[r * PLONG_KEYS + j]);
            for (int i = 0; i < vectors_of; i++) {
                sum[r * vectors_of + i] = vf_fma(x[i], y, sum[r * vectors_of + i]);
            }
        }
    }
    for (int r = 0; r < rows_of; r++) {
        for (int i = 0; i < vectors_of; i++) {
            vf_store(acc + r * dv + at + i * VW, sum[r * vectors_of + i]);
        }
    }
}

FEW_INLINE void few_values_rows(
    const int rows_of, const int32_t type, const void * const * v, int n, int d, const float * p, float * acc, int dv) {
    const int vectors_of = MR * NV / rows_of < 1 ? 1 : MR * NV / rows_of > 4 ? 4 : MR * NV / rows_of;
    int       at         = 0;
    for (; at + vectors_of * VW <= d; at += vectors_of * VW) {
        few_values_block(rows_of, vectors_of, type, v, n, at, p, acc, dv);
    }
    for (; at < d; at += VW) {
        few_values_block(rows_of, 1, type, v, n, at, p, acc, dv);
    }
}

#define FEW_FOR_TYPE(call, rows_of, type, ...)                                  \
    switch (type) {                                                             \
        case GGML_TYPE_F16: call(rows_of, GGML_TYPE_F16, __VA_ARGS__); break;   \
        case GGML_TYPE_BF16: call(rows_of, GGML_TYPE_BF16, __VA_ARGS__); break; \
        default: call(rows_of, GGML_TYPE_F32, __VA_ARGS__); break;              \
    }

#define FEW_FOR_ROWS(call, rows_of, type, ...)                   \
    switch (rows_of) {                                           \
        case 8: FEW_FOR_TYPE(call, 8, type, __VA_ARGS__) break;  \
        case 4: FEW_FOR_TYPE(call, 4, type, __VA_ARGS__) break;  \
        case 2: FEW_FOR_TYPE(call, 2, type, __VA_ARGS__) break;  \
        default: FEW_FOR_TYPE(call, 1, type, __VA_ARGS__) break; \
    }

static inline int few_step(int rows) { return rows >= 8 ? 8 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1; }

/* k[n]: rows of d values (a multiple of VW) in f32, f16 or bf16 */
static void few_logits(
    int rows, int32_t type, const void * const * k, int n, int d, const float * q, int dq, float * s) {
    for (int r = 0, step; r < rows; r += step) {
        step = few_step(rows - r);
        FEW_FOR_ROWS(few_logits_rows, step, type, k, n, d, q + r * dq, dq, s + r * PLONG_KEYS)
    }
}

static void few_values(
    int rows, int32_t type, const void * const * v, int n, int d, const float * p, float * acc, int dv) {
    for (int r = 0, step; r < rows; r += step) {
        step = few_step(rows - r);
        FEW_FOR_ROWS(few_values_rows, step, type, v, n, d, p + r * PLONG_KEYS, acc + r * dv, dv)
    }
}

#endif
