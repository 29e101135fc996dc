/* rows.h - K, V and Q rows as f32: conversion from every cache type, rotation, Hadamard transform. */
#ifndef PLONG_CPU_BODY_ROWS_H
#define PLONG_CPU_BODY_ROWS_H

#include "cpu/kernel.h"
#include "rotate.h"

/* ggml's quantized blocks of 32: a f16 scale, then int8 values, or nibbles (low half first) minus 8 */
struct q8_block {
    uint16_t scale;
    int8_t   q[32];
};

struct q4_block {
    uint16_t scale;
    uint8_t  q[16];
};

#define PREFETCH_AHEAD 16 /* rows between a prefetch and the use */

/* Prefetches rows j .. j + count of n. */
static inline void prefetch_rows(const void * const * row, int j, int count, int n, int bytes) {
    for (const int end = j + count < n ? j + count : n; j < end; j++) {
        for (int i = 0; i < bytes; i += 64) {
            __builtin_prefetch((const char *) row[j] + i, 0, 3);
        }
    }
}

static inline void row_q8(const struct q8_block * b, float * dst, int d) {
    for (int i = 0; i < d; i += 32, b++) {
        const vf s = vf_set1(f16_one(b->scale));
        for (int j = 0; j < 32; j += VW) {
            vf_store(dst + i + j, vf_mul(s, vf_i8(b->q + j)));
        }
    }
}

static inline void row_q4(const struct q4_block * b, float * dst, int d) {
    for (int i = 0; i < d; i += 32, b++) {
        const vf s = vf_set1(f16_one(b->scale));
        for (int j = 0; j < 16; j += VW) {
            vf_store(dst + i + j, vf_mul(s, vf_i4(b->q + j, false)));
            vf_store(dst + i + 16 + j, vf_mul(s, vf_i4(b->q + j, true)));
        }
    }
}

/* dst [plong_pad32(d)]: the row's d values, then zeros */
static inline void row_to_f32(int32_t type, const void * src, float * dst, int d) {
    int i = 0;
    switch (type) {
        case GGML_TYPE_F32:
            for (; i + VW <= d; i += VW) {
                vf_store(dst + i, vf_load((const float *) src + i));
            }
            for (; i < d; i++) {
                dst[i] = ((const float *) src)[i];
            }
            break;
        case GGML_TYPE_F16:
            for (; i + VW <= d; i += VW) {
                vf_store(dst + i, vf_f16((const uint16_t *) src + i));
            }
            for (; i < d; i++) {
                dst[i] = f16_one(((const uint16_t *) src)[i]);
            }
            break;
        case GGML_TYPE_BF16:
            for (; i + VW <= d; i += VW) {
                vf_store(dst + i, vf_bf16((const uint16_t *) src + i));
            }
            for (; i < d; i++) {
                const uint32_t bits = (uint32_t) ((const uint16_t *) src)[i] << 16;
                memcpy(dst + i, &bits, sizeof(float));
            }
            break;
        case GGML_TYPE_Q8_0: row_q8((const struct q8_block *) src, dst, d); break;
        default: row_q4((const struct q4_block *) src, dst, d); break;
    }
    for (i = d; i < plong_pad32(d); i++) {
        dst[i] = 0.0f;
    }
}

#endif
