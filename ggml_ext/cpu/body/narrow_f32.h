/*
 * narrow_f32.h - logits and P*V for a few query rows (decode), straight from the cache in its own type. `rows_of`,
 * `keys_of`, `vectors_of` and `type` are constants at every call, so the loops unroll. Structs are passed by value:
 * everything is inlined, so they disappear.
 */
#ifndef PLONG_CPU_BODY_NARROW_F32_H
#define PLONG_CPU_BODY_NARROW_F32_H

#include "cpu/body/prefetch.h"
#include "cpu/body/rows.h"

#define NARROW_BLOCK 64                 /* keys between one softmax and the next: the row length of logits */
#define NARROW_NEAR  8                  /* how many keys ahead are fetched from L2 into L1 */
#define NARROW_SUMS  (VW == 8 ? 8 : 16) /* sums in flight: as many as fit in registers together with the operands */

PLONG_INLINE bool narrow_is_quant(const int32_t type) {
    return type != GGML_TYPE_F32 && type != GGML_TYPE_F16 && type != GGML_TYPE_BF16;
}

/* Of d dims in the cache */
PLONG_INLINE size_t narrow_bytes(const int32_t type, int d) {
    return narrow_is_quant(type) ? (size_t) (d / 32) * block_bytes(type) : (size_t) d * (type == GGML_TYPE_F32 ? 4 : 2);
}

/* K or V of a kv head in the cache: key j is at row[j] + at. */
struct rows_in {
    const char * const * row; /* [n] */
    int                  n;
    size_t               at; /* bytes */
    int32_t              type;
    int                  d;     /* a multiple of VW, of 32 in quantized types */
    float *              scale; /* [2][d / 32][NARROW_BLOCK] room for scales, then offsets, of quantized types */
};

/* Query rows, and the place for their logits. */
struct logits_out {
    const float * q; /* [rows][dq] */
    int           dq;
    float *       s; /* [rows][NARROW_BLOCK] */
};

/* Probabilities of query rows, 0 for missing keys, and the sums to which P*V is added. */
struct values_out {
    float * p;   /* [rows][NARROW_BLOCK] */
    float * acc; /* [rows][dv] */
    int     dv;
};

PLONG_INLINE struct rows_in rows_from(struct rows_in x, int j) {
    x.row += j;
    x.n -= j;
    x.scale += j;
    return x;
}

PLONG_INLINE struct logits_out logits_from(struct logits_out x, int row, int key) {
    x.q += row * x.dq;
    x.s += row * NARROW_BLOCK + key;
    return x;
}

PLONG_INLINE struct values_out values_from(struct values_out x, int row) {
    x.p += row * NARROW_BLOCK;
    x.acc += row * x.dv;
    return x;
}

/* VW values of a row from dim i + u on, before narrow_scaled() applies their scale and offset. i: in quantized types a
 * multiple of 32; u: below 32. */
PLONG_INLINE vf narrow_load(const int32_t type, const char * row, int i, int u) {
    switch (type) {
        case GGML_TYPE_F16: return vf_f16((const uint16_t *) row + i + u);
        case GGML_TYPE_BF16: return vf_bf16((const uint16_t *) row + i + u);
        case GGML_TYPE_F32: return vf_load((const float *) row + i + u);
        default: return block_integers(type, row + i / 32 * block_bytes(type), u);
    }
}

/* x times the scale of dim i of key j of rows, plus their offset */
PLONG_INLINE vf narrow_scaled(const int32_t type, vf x, struct rows_in rows, int i, int j) {
    const float * scale = rows.scale + i / 32 * NARROW_BLOCK + j;
    if (block_has_min(type)) {
        return vf_fma(x, vf_set1(*scale), vf_set1(scale[rows.d / 32 * NARROW_BLOCK]));
    }
    return narrow_is_quant(type) ? vf_mul(x, vf_set1(*scale)) : x;
}

/* Halves at the same place of all rows: gathered first, then converted VW at a time. */
PLONG_INLINE void narrow_halves(struct rows_in x, size_t at, float * out) {
    uint16_t bits[NARROW_BLOCK + VW];
    for (int j = 0; j < x.n; j++) {
        memcpy(&bits[j], x.row[j] + at, sizeof(bits[j]));
    }
    for (int j = 0; j < x.n; j += VW) {
        vf_store(out + j, vf_f16(bits + j));
    }
}

/* The scales and offsets of quantized rows, block by block */
PLONG_INLINE void narrow_scales(struct rows_in x) {
    const vf middle = vf_set1(block_middle(x.type));
    size_t   at     = x.at;
    float *  scale  = x.scale;
    for (int b = 0; narrow_is_quant(x.type) && b < x.d / 32; b++, scale += NARROW_BLOCK, at += block_bytes(x.type)) {
        float * offset = scale + x.d / 32 * NARROW_BLOCK;
        narrow_halves(x, at, scale);
        if (block_has_min(x.type)) {
            narrow_halves(x, at + sizeof(uint16_t), offset);
            for (int j = 0; j < x.n; j += VW) {
                vf_store(offset + j, vf_fma(vf_load(scale + j), middle, vf_load(offset + j)));
            }
        }
    }
}

/* s[rows_of] = q[rows_of] * k^T for keys_of keys */
PLONG_INLINE void narrow_logits_block(
    const int rows_of, const int keys_of, const int32_t type, struct rows_in k, struct logits_out x,
    struct prefetch_queue * ahead) {
    const int unit = narrow_is_quant(type) ? 32 : VW;
    const int step = (k.d / keys_of + unit - 1) / unit * unit;
    int       left = keys_of; /* keys ahead that are still to be prefetched */
    vf        sum[16];
    for (int i = 0; i < rows_of * keys_of; i++) {
        sum[i] = vf_zero();
    }
    for (int i = 0; i < k.d; i += unit) {
        if (i % step == 0) {
            prefetch_rows_of(ahead, 1);
            left--;
        }
        for (int u = 0; u < unit; u += VW) {
            vf y[16];
            for (int j = 0; j < keys_of; j++) {
                y[j] = narrow_scaled(type, narrow_load(type, k.row[j] + k.at, i, u), k, i, j);
            }
            for (int r = 0; r < rows_of; r++) {
                const vf q = vf_load(x.q + r * x.dq + i + u);
                for (int j = 0; j < keys_of; j++) {
                    sum[r * keys_of + j] = vf_fma(y[j], q, sum[r * keys_of + j]);
                }
            }
        }
    }
    prefetch_rows_of(ahead, left); /* for head sizes that are not a multiple of keys_of vectors */
    if (keys_of == 4) {
        for (int r = 0; r < rows_of; r++) {
            vf_sum4(sum[r * 4], sum[r * 4 + 1], sum[r * 4 + 2], sum[r * 4 + 3], x.s + r * NARROW_BLOCK);
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
            x.s[r * NARROW_BLOCK + j] = out[r * keys_of + j];
        }
    }
}

PLONG_INLINE void narrow_logits_rows(
    const int rows_of, const int32_t type, struct rows_in k, struct logits_out x, struct prefetch_queue * ahead) {
    const int keys_of = NARROW_SUMS / rows_of > 4 ? 4 : NARROW_SUMS / rows_of;
    int       j       = 0;
    for (; j + keys_of <= k.n; j += keys_of) {
        for (int i = j + NARROW_NEAR; i < j + NARROW_NEAR + keys_of && i < k.n; i++) {
            prefetch_near(k.row[i] + k.at, narrow_bytes(type, k.d));
        }
        narrow_logits_block(rows_of, keys_of, type, rows_from(k, j), logits_from(x, 0, j), ahead);
    }
    for (; j < k.n; j++) {
        narrow_logits_block(rows_of, 1, type, rows_from(k, j), logits_from(x, 0, j), ahead);
    }
}

/* acc[rows_of] += p[rows_of] * v, vectors_of vectors of each row from dim i0 on. share: of every two keys */
PLONG_INLINE void narrow_values_block(
    const int rows_of, const int vectors_of, const int32_t type, struct rows_in v, int i0, struct values_out x,
    struct prefetch_share share) {
    const int u0 = narrow_is_quant(type) ? i0 & 31 : 0; /* its place in its block */
    vf        sum[16];
    for (int r = 0; r < rows_of; r++) {
        for (int i = 0; i < vectors_of; i++) {
            sum[r * vectors_of + i] = vf_load(x.acc + r * x.dv + i0 + i * VW);
        }
    }
    for (int j = 0; j < v.n; j++) {
        vf y[8];
        if (j % 2 == 0) {
            prefetch_rows_of(share.ahead, share.n);
        }
        if (j + NARROW_NEAR < v.n) {
            const char * near = v.row[j + NARROW_NEAR] + v.at + narrow_bytes(type, i0);
            prefetch_near(near, narrow_bytes(type, vectors_of * VW + u0));
        }
        for (int i = 0; i < vectors_of; i++) {
            const int at_dim = i0 + i * VW;
            const vf  load   = narrow_load(type, v.row[j] + v.at, at_dim & ~31, at_dim & 31);
            y[i]             = narrow_scaled(type, load, v, at_dim, j);
        }
        for (int r = 0; r < rows_of; r++) {
            const vf p = vf_set1(x.p[r * NARROW_BLOCK + j]);
            for (int i = 0; i < vectors_of; i++) {
                sum[r * vectors_of + i] = vf_fma(y[i], p, sum[r * vectors_of + i]);
            }
        }
    }
    for (int r = 0; r < rows_of; r++) {
        for (int i = 0; i < vectors_of; i++) {
            vf_store(x.acc + r * x.dv + i0 + i * VW, sum[r * vectors_of + i]);
        }
    }
}

PLONG_INLINE void narrow_values_rows(
    const int rows_of, const int32_t type, struct rows_in v, struct values_out x, struct prefetch_queue * ahead) {
    const int vectors_of = NARROW_SUMS / rows_of > 4 ? 4 : NARROW_SUMS / rows_of;
    const int share      = (2 * vectors_of * VW + v.d - 1) / v.d; /* so that together all passes prefetch everything */
    int       i          = 0;
    for (; i + vectors_of * VW <= v.d; i += vectors_of * VW) {
        narrow_values_block(rows_of, vectors_of, type, v, i, x, (struct prefetch_share) { ahead, share });
    }
    for (; i < v.d; i += VW) {
        narrow_values_block(rows_of, 1, type, v, i, x, (struct prefetch_share) { ahead, 0 });
    }
}

#ifdef NARROW_INTEGERS /* this instruction set reads quantized rows in integers */
#define NARROW_FOR_QUANT(call, rows_of, ...)
#else
#define NARROW_FOR_QUANT(call, rows_of, ...)                                \
    case GGML_TYPE_Q8_0: call(rows_of, GGML_TYPE_Q8_0, __VA_ARGS__); break; \
    case GGML_TYPE_Q4_0: call(rows_of, GGML_TYPE_Q4_0, __VA_ARGS__); break; \
    case GGML_TYPE_Q4_1: call(rows_of, GGML_TYPE_Q4_1, __VA_ARGS__); break; \
    case GGML_TYPE_Q5_0: call(rows_of, GGML_TYPE_Q5_0, __VA_ARGS__); break; \
    case GGML_TYPE_Q5_1: call(rows_of, GGML_TYPE_Q5_1, __VA_ARGS__); break; \
    case GGML_TYPE_IQ4_NL: call(rows_of, GGML_TYPE_IQ4_NL, __VA_ARGS__); break;
#endif

#define NARROW_FOR_TYPE(call, rows_of, type, ...)                             \
    switch (type) {                                                           \
        case GGML_TYPE_F16: call(rows_of, GGML_TYPE_F16, __VA_ARGS__); break; \
        case GGML_TYPE_BF16:                                                  \
            call(rows_of, GGML_TYPE_BF16, __VA_ARGS__);                       \
            break;                                                            \
            NARROW_FOR_QUANT(call, rows_of, __VA_ARGS__)                      \
        default: call(rows_of, GGML_TYPE_F32, __VA_ARGS__); break;            \
    }

#define NARROW_FOR_ROWS(call, rows_of, type, ...)                   \
    switch (rows_of) {                                              \
        case 8: NARROW_FOR_TYPE(call, 8, type, __VA_ARGS__) break;  \
        case 4: NARROW_FOR_TYPE(call, 4, type, __VA_ARGS__) break;  \
        case 2: NARROW_FOR_TYPE(call, 2, type, __VA_ARGS__) break;  \
        default: NARROW_FOR_TYPE(call, 1, type, __VA_ARGS__) break; \
    }

static inline int narrow_step(int rows) { return rows >= 8 ? 8 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1; }

/* s = q * k^T */
static void narrow_logits(int rows, struct rows_in k, struct logits_out x, struct prefetch_queue * ahead) {
    narrow_scales(k);
    for (int r = 0, step; r < rows; r += step) {
        step = narrow_step(rows - r);
        NARROW_FOR_ROWS(narrow_logits_rows, step, k.type, k, logits_from(x, r, 0), ahead)
    }
}

/* acc += p * v */
static void narrow_values(int rows, struct rows_in v, struct values_out x, struct prefetch_queue * ahead) {
    narrow_scales(v);
    for (int r = 0, step; r < rows; r += step) {
        step = narrow_step(rows - r);
        NARROW_FOR_ROWS(narrow_values_rows, step, v.type, v, values_from(x, r), ahead)
    }
}

#endif
