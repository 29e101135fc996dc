/* rows.h - K, V and Q rows as f32: conversion from every cache type, rotation, Hadamard transform. */
#ifndef PLONG_CPU_BODY_ROWS_H
#define PLONG_CPU_BODY_ROWS_H

#include "cpu/kernel.h"
#include "rotate.h"

/*
 * ggml's quantized blocks of 32 values: a f16 scale; in q4_1 and q5_1 a f16 minimum; in q5_0 and q5_1 the fifth bit of
 * each value; then int8 values, or nibbles (low half first). Integers are read as signed ones: those that ggml adds to
 * a minimum are read `middle` smaller, and the minimum as so much larger. value = scale * integer + offset.
 */
PLONG_INLINE bool block_has_min(const int32_t type) { return type == GGML_TYPE_Q4_1 || type == GGML_TYPE_Q5_1; }

PLONG_INLINE bool block_has_fifth(const int32_t type) { return type == GGML_TYPE_Q5_0 || type == GGML_TYPE_Q5_1; }

/* Bytes before the integers of a block, and of the whole block */
PLONG_INLINE size_t block_head(const int32_t type) {
    return sizeof(uint16_t) * (block_has_min(type) ? 2 : 1) + (block_has_fifth(type) ? sizeof(uint32_t) : 0);
}

PLONG_INLINE size_t block_bytes(const int32_t type) { return block_head(type) + (type == GGML_TYPE_Q8_0 ? 32 : 16); }

PLONG_INLINE float block_middle(const int32_t type) { return block_has_fifth(type) ? 16.0f : 8.0f; }

/* The fifth bits of the block whose integers are at q */
PLONG_INLINE uint32_t block_fifth(const char * q) {
    uint32_t bits;
    memcpy(&bits, q - sizeof(bits), sizeof(bits));
    return bits;
}

PLONG_INLINE float block_half(const char * p) {
    uint16_t x;
    memcpy(&x, p, sizeof(x));
    return f16_one(x);
}

/* VW integers of a block from dim u on, as floats */
PLONG_INLINE vf block_integers(const int32_t type, const char * block, int u) {
    const char *    q    = block + block_head(type);
    const uint8_t * four = (const uint8_t *) q + u % 16;
    switch (type) {
        case GGML_TYPE_Q8_0: return vf_i8((const int8_t *) q + u);
        case GGML_TYPE_IQ4_NL: return vf_nl(four, u >= 16);
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q5_1: return vf_i5(four, u >= 16, block_fifth(q) >> u);
        default: return vf_i4(four, u >= 16);
    }
}

/* A block's scale and offset in all lanes */
struct block_line {
    vf scale, offset;
};

PLONG_INLINE struct block_line block_line(const int32_t type, const char * block) {
    const float scale = block_half(block);
    const float least = block_has_min(type) ? block_half(block + sizeof(uint16_t)) : 0.0f;
    return (struct block_line) { vf_set1(scale), vf_set1(least + block_middle(type) * scale) };
}

PLONG_INLINE vf block_values(const int32_t type, const char * block, const struct block_line x, int u) {
    const vf y = block_integers(type, block, u);
    return block_has_min(type) ? vf_fma(y, x.scale, x.offset) : vf_mul(y, x.scale);
}

PLONG_INLINE void row_blocks(const int32_t type, const char * block, float * dst, int d) {
    for (int i = 0; i < d; i += 32, block += block_bytes(type)) {
        const struct block_line x = block_line(type, block);
        for (int u = 0; u < 32; u += VW) {
            vf_store(dst + i + u, block_values(type, block, x, u));
        }
    }
}

#define PREFETCH_AHEAD 16 /* rows between a prefetch and the use */

/* Prefetches rows j .. j + count of n. */
static inline void prefetch_rows(const void * const * row, int j, int count, int n, int bytes) {
    for (const int end = j + count < n ? j + count : n; j < end; j++) {
        for (int i = 0; i < bytes; i += 64) {
            __builtin_prefetch((const char *) row[j] + i, 0, 3);
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
        case GGML_TYPE_Q8_0: row_blocks(GGML_TYPE_Q8_0, src, dst, d); break;
        case GGML_TYPE_Q4_1: row_blocks(GGML_TYPE_Q4_1, src, dst, d); break;
        case GGML_TYPE_Q5_0: row_blocks(GGML_TYPE_Q5_0, src, dst, d); break;
        case GGML_TYPE_Q5_1: row_blocks(GGML_TYPE_Q5_1, src, dst, d); break;
        case GGML_TYPE_IQ4_NL: row_blocks(GGML_TYPE_IQ4_NL, src, dst, d); break;
        default: row_blocks(GGML_TYPE_Q4_0, src, dst, d); break;
    }
    for (i = d; i < plong_pad32(d); i++) {
        dst[i] = 0.0f;
    }
}

#endif
