/*
 * narrow_f32.h - logits and P*V for a few query rows (decode), straight from the cache in its own type. `rows_of`, `keys_of`,
 * `type` are constants at every call, so the loops unroll.
 */
#ifndef PLONG_CPU_BODY_NARROW_F32_H
#define PLONG_CPU_BODY_NARROW_F32_H

#include "cpu/body/prefetch.h"
#include "cpu/body/rows.h"

#define NARROW_BLOCK 64                 /* keys between one softmax and the next: the row length of logits */
#define NARROW_NEAR  8                  /* keys ahead that are fetched from L2 into L1 */
#define NARROW_SUMS  (VW == 8 ? 8 : 16) /* sums in flight: as many as registers hold beside the operands */

PLONG_INLINE bool narrow_is_quant(const int32_t type) { return type == GGML_TYPE_Q8_0 || type == GGML_TYPE_Q4_0; }

PLONG_INLINE size_t narrow_quant_bytes(const int32_t type) {
    return type == GGML_TYPE_Q8_0 ? sizeof(struct q8_block) : sizeof(struct q4_block);
}

/* Of d dims in the cache */
PLONG_INLINE size_t narrow_bytes(const int32_t type, int d) {
    return narrow_is_quant(type) ? (size_t) (d / 32) * narrow_quant_bytes(type)
                                 : (size_t) d * (type == GGML_TYPE_F32 ? 4 : 2);
}

/* VW values of a row from dim i + u on: what narrow_scaled() multiplies by its scale. i: in quantized types a multiple of 32, u
 * below 32. */
PLONG_INLINE vf narrow_load(const int32_t type, const char * row, int i, int u) {
    switch (type) {
        case GGML_TYPE_F16: return vf_f16((const uint16_t *) row + i + u);
        case GGML_TYPE_BF16: return vf_bf16((const uint16_t *) row + i + u);
        case GGML_TYPE_Q8_0: return vf_i8(((const struct q8_block *) row)[i / 32].q + u);
        case GGML_TYPE_Q4_0: return vf_i4(((const struct q4_block *) row)[i / 32].q + u % 16, u >= 16);
        default: return vf_load((const float *) row + i + u);
    }
}

/* x times the scale of dim i of key j. scale [d / 32][NARROW_BLOCK] */
PLONG_INLINE vf narrow_scaled(const int32_t type, vf x, const float * scale, int i, int j) {
    return narrow_is_quant(type) ? vf_mul(x, vf_set1(scale[i / 32 * NARROW_BLOCK + j])) : x;
}

/* The scales of n quantized rows, block by block: gathered first, then converted VW at a time. */
PLONG_INLINE void narrow_scales(const int32_t type, const char * const * row, int n, size_t at, int d, float * scale) {
    uint16_t bits[NARROW_BLOCK + VW];
    for (int b = 0; narrow_is_quant(type) && b < d / 32; b++, scale += NARROW_BLOCK, at += narrow_quant_bytes(type)) {
        for (int j = 0; j < n; j++) {
            memcpy(&bits[j], row[j] + at, sizeof(bits[j]));
        }
        for (int j = 0; j < n; j += VW) {
            vf_store(scale + j, vf_f16(bits + j));
        }
    }
}

/* s[rows_of][NARROW_BLOCK] = q[rows_of][d] * k^T for keys_of keys */
PLONG_INLINE void narrow_logits_block(
    const int rows_of, const int keys_of, const int32_t type, const char * const * k, size_t at, int d, const float * q,
    int dq, const float * scale, float * s, struct prefetch_queue * ahead) {
    const int unit = narrow_is_quant(type) ? 32 : VW;
    const int step = (d / keys_of + unit - 1) / unit * unit;
    int       left = keys_of; /* keys ahead that are still to be prefetched */
    vf        sum[16];
    for (int i = 0; i < rows_of * keys_of; i++) {
        sum[i] = vf_zero();
    }
    for (int i = 0; i < d; i += unit) {
        if (i % step == 0) {
            prefetch_rows_of(ahead, 1);
            left--;
        }
        for (int u = 0; u < unit; u += VW) {
            vf x[16];
            for (int j = 0; j < keys_of; j++) {
                x[j] = narrow_scaled(type, narrow_load(type, k[j] + at, i, u), scale, i, j);
            }
            for (int r = 0; r < rows_of; r++) {
                const vf y = vf_load(q + r * dq + i + u);
                for (int j = 0; j < keys_of; j++) {
                    sum[r * keys_of + j] = vf_fma(x[j], y, sum[r * keys_of + j]);
                }
            }
        }
    }
    prefetch_rows_of(ahead, left); /* head sizes that keys_of vectors do not divide */
    if (keys_of == 4) {
        for (int r = 0; r < rows_of; r++) {
            vf_sum4(sum[r * 4], sum[r * 4 + 1], sum[r * 4 + 2], sum[r * 4 + 3], s + r * NARROW_BLOCK);
        }
        return;
    }
    float out[16];
    int   i = 0;
    for (; i + 4 <= rows_of * keys_of; i += 4) {
        vf_sum4(sum[i], sum[i + 1], sum[i + 2], sum[i + 3], out + i);
    }
    for (; i < rows_of * keys_of; i++) {
        out[i] = vf_sum(sum[i]);
    }
    for (int r = 0; r < rows_of; r++) {
        for (int j = 0; j < keys_of; j++) {
            s[r * NARROW_BLOCK + j] = out[r * keys_of + j];
        }
    }
}

PLONG_INLINE void narrow_logits_rows(
    const int rows_of, const int32_t type, const char * const * k, int n, size_t at, int d, const float * q, int dq,
    const float * scale, float * s, struct prefetch_queue * ahead) {
    const int keys_of = NARROW_SUMS / rows_of > 4 ? 4 : NARROW_SUMS / rows_of;
    int       j       = 0;
    for (; j + keys_of <= n; j += keys_of) {
        for (int i = j + NARROW_NEAR; i < j + NARROW_NEAR + keys_of && i < n; i++) {
            prefetch_near(k[i] + at, narrow_bytes(type, d));
        }
        narrow_logits_block(rows_of, keys_of, type, k + j, at, d, q, dq, scale + j, s + j, ahead);
    }
    for (; j < n; j++) {
        narrow_logits_block(rows_of, 1, type, k + j, at, d, q, dq, scale + j, s + j, ahead);
    }
}

/* acc[rows_of][dv] += p[rows_of][n] * v, vectors_of vectors of each row at a time */
PLONG_INLINE void narrow_values_block(
    const int rows_of, const int vectors_of, const int32_t type, const char * const * v, int n, size_t at, int i0,
    const float * p, const float * scale, float * acc, int dv, struct prefetch_queue * ahead, int share) {
    const int u0 = narrow_is_quant(type) ? i0 & 31 : 0; /* where in its block it begins */
    vf        sum[16];
    for (int r = 0; r < rows_of; r++) {
        for (int i = 0; i < vectors_of; i++) {
            sum[r * vectors_of + i] = vf_load(acc + r * dv + i0 + i * VW);
        }
    }
    for (int j = 0; j < n; j++) {
        vf x[8];
        if (j % 2 == 0) {
            prefetch_rows_of(ahead, share);
        }
        if (j + NARROW_NEAR < n) {
            prefetch_near(v[j + NARROW_NEAR] + at + narrow_bytes(type, i0), narrow_bytes(type, vectors_of * VW + u0));
        }
        for (int i = 0; i < vectors_of; i++) {
            const int at_dim = i0 + i * VW;
            x[i] = narrow_scaled(type, narrow_load(type, v[j] + at, at_dim & ~31, at_dim & 31), scale, at_dim, j);
        }
        for (int r = 0; r < rows_of; r++) {
            const vf y = vf_set1(p[r * NARROW_BLOCK + j]);
            for (int i = 0; i < vectors_of; i++) {
                sum[r * vectors_of + i] = vf_fma(x[i], y, sum[r * vectors_of + i]);
            }
        }
    }
    for (int r = 0; r < rows_of; r++) {
        for (int i = 0; i < vectors_of; i++) {
            vf_store(acc + r * dv + i0 + i * VW, sum[r * vectors_of + i]);
        }
    }
}

PLONG_INLINE void narrow_values_rows(
    const int rows_of, const int32_t type, const char * const * v, int n, size_t at, int d, const float * p,
    const float * scale, float * acc, int dv, struct prefetch_queue * ahead) {
    const int vectors_of = NARROW_SUMS / rows_of > 4 ? 4 : NARROW_SUMS / rows_of;
    const int share      = (2 * vectors_of * VW + d - 1) / d; /* of the keys ahead, so that all passes prefetch all */
    int       i          = 0;
    for (; i + vectors_of * VW <= d; i += vectors_of * VW) {
        narrow_values_block(rows_of, vectors_of, type, v, n, at, i, p, scale, acc, dv, ahead, share);
    }
    for (; i < d; i += VW) {
        narrow_values_block(rows_of, 1, type, v, n, at, i, p, scale, acc, dv, ahead, 0);
    }
}

#define NARROW_FOR_TYPE(call, rows_of, type, ...)                               \
    switch (type) {                                                             \
        case GGML_TYPE_F16: call(rows_of, GGML_TYPE_F16, __VA_ARGS__); break;   \
        case GGML_TYPE_BF16: call(rows_of, GGML_TYPE_BF16, __VA_ARGS__); break; \
        case GGML_TYPE_Q8_0: call(rows_of, GGML_TYPE_Q8_0, __VA_ARGS__); break; \
        case GGML_TYPE_Q4_0: call(rows_of, GGML_TYPE_Q4_0, __VA_ARGS__); break; \
        default: call(rows_of, GGML_TYPE_F32, __VA_ARGS__); break;              \
    }

#define NARROW_FOR_ROWS(call, rows_of, type, ...)                   \
    switch (rows_of) {                                              \
        case 8: NARROW_FOR_TYPE(call, 8, type, __VA_ARGS__) break;  \
        case 4: NARROW_FOR_TYPE(call, 4, type, __VA_ARGS__) break;  \
        case 2: NARROW_FOR_TYPE(call, 2, type, __VA_ARGS__) break;  \
        default: NARROW_FOR_TYPE(call, 1, type, __VA_ARGS__) break; \
    }

static inline int narrow_step(int rows) { return rows >= 8 ? 8 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1; }

/* s[rows][NARROW_BLOCK] = q[rows][dq] * k^T; K rows of d values (a multiple of VW, of 32 in quantized types) at k[n] + at.
 * scale [d / 32][NARROW_BLOCK]: room for those of quantized types. */
static void narrow_logits(
    int rows, int32_t type, const char * const * k, int n, size_t at, int d, const float * q, int dq, float * scale,
    float * s, struct prefetch_queue * ahead) {
    narrow_scales(type, k, n, at, d, scale);
    for (int r = 0, step; r < rows; r += step) {
        step = narrow_step(rows - r);
        NARROW_FOR_ROWS(narrow_logits_rows, step, type, k, n, at, d, q + r * dq, dq, scale, s + r * NARROW_BLOCK, ahead)
    }
}

/* acc[rows][dv] += p[rows][NARROW_BLOCK] * v; V rows and scale as in narrow_logits() */
static void narrow_values(
    int rows, int32_t type, const char * const * v, int n, size_t at, int d, const float * p, float * scale,
    float * acc, int dv, struct prefetch_queue * ahead) {
    narrow_scales(type, v, n, at, d, scale);
    for (int r = 0, step; r < rows; r += step) {
        step = narrow_step(rows - r);
        NARROW_FOR_ROWS(
            narrow_values_rows, step, type, v, n, at, d, p + r * NARROW_BLOCK, scale, acc + r * dv, dv, ahead)
    }
}

#endif
