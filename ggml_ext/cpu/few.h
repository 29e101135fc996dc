/*
 * few.h - logits and P*V for a few query rows (decode): a few keys at a time, for all kv heads side by side, straight
 * from the cache in its own type, so that memory is read once and in its own order. `rows_of`, `keys_of`, `type` are
 * constants at every call, so the loops unroll.
 */
#ifndef PLONG_CPU_FEW_H
#define PLONG_CPU_FEW_H

#include "attn.h"
#include "simd.h"

#define FEW_KEYS 4
#define FEW_BLOCK 64 /* keys between one softmax and the next: the row length of logits */
#define FEW_SUMS (VW == 8 ? 8 : 16) /* sums in flight: as many as registers hold beside the operands */

/* K or V rows of a few keys, in f32, f16 or bf16. Head h of key j is at row[j] + h * head. */
struct few_rows {
    int32_t            type;
    int                n, n_heads;
    size_t             head;
    const char *       row[FEW_KEYS];
    struct few_ahead * ahead; /* NULL: nothing */
};

#define FEW_PAGES 8

/*
 * The rows of the next block, asked for while this one is computed. Memory takes turns between FEW_PAGES pages of 4 KiB:
 * a core has few requests of its own in flight, but its L2 prefetcher runs ahead in each page that it sees growing.
 */
struct few_ahead {
    const int32_t * cell; /* [n] */
    int             n, n_heads;
    const char *    base;
    size_t          stride, head, bytes; /* from cell to cell, from head to head, of a row */
    int             page;                /* cells in a page */
    int             group, k, h, p;      /* next: head h of cell group + p * page + k */
};

static inline struct few_ahead few_ahead(
    const int32_t * cell, int n, int n_heads, const char * base, size_t stride, size_t head, size_t bytes) {
    const int page = bytes * (size_t) n_heads >= 4096 ? 1 : (int) (4096 / (bytes * (size_t) n_heads));
    return (struct few_ahead) { cell, n, n_heads, base, stride, head, bytes, page, 0, 0, 0, 0 };
}

/* Asks for n more rows. */
PLONG_INLINE void few_prefetch(struct few_ahead * a, int n) {
    while (n > 0 && a->group < a->n) {
        const int at = a->group + a->p * a->page + a->k;
        if (at < a->n) {
            const char * row = a->base + (size_t) a->cell[at] * a->stride + (size_t) a->h * a->head;
            for (size_t i = 0; i < a->bytes; i += 64) {
                __builtin_prefetch(row + i, 0, 2);
            }
            n--;
        }
        if (++a->p == FEW_PAGES) {
            a->p = 0;
            if (++a->h == a->n_heads) {
                a->h = 0;
                if (++a->k == a->page) {
                    a->k = 0;
                    a->group += FEW_PAGES * a->page;
                }
            }
        }
    }
}

PLONG_INLINE vf few_load(const int32_t type, const char * row, int i) {
    return type == GGML_TYPE_F16    ? vf_f16((const uint16_t *) row + i)
           : type == GGML_TYPE_BF16 ? vf_bf16((const uint16_t *) row + i)
                                    : vf_load((const float *) row + i);
}

/* s[rows_of][FEW_BLOCK] = q[rows_of][d] * k^T for keys_of keys */
PLONG_INLINE void few_logits_block(
    const int rows_of, const int keys_of, const int32_t type, const char * const * k, size_t at, int d, const float * q,
    int dq, float * s) {
    vf sum[16];
    for (int i = 0; i < rows_of * keys_of; i++) {
        sum[i] = vf_zero();
    }
    for (int i = 0; i < d; i += VW) {
        vf x[16];
        for (int j = 0; j < keys_of; j++) {
            x[j] = few_load(type, k[j] + at, i);
        }
        for (int r = 0; r < rows_of; r++) {
            const vf y = vf_load(q + r * dq + i);
            for (int j = 0; j < keys_of; j++) {
                sum[r * keys_of + j] = vf_fma(x[j], y, sum[r * keys_of + j]);
            }
        }
    }
    if (keys_of == 4) {
        for (int r = 0; r < rows_of; r++) {
            vf_sum4(sum[r * 4], sum[r * 4 + 1], sum[r * 4 + 2], sum[r * 4 + 3], s + r * FEW_BLOCK);
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
            s[r * FEW_BLOCK + j] = out[r * keys_of + j];
        }
    }
}

/* Rows r .. r + rows_of of each head's `rows`; q [n_heads][rows][dq], s [n_heads][rows][FEW_BLOCK] */
PLONG_INLINE void few_logits_rows(
    const int rows_of, const int32_t type, const struct few_rows * k, int rows, int r, int d, const float * q, int dq,
    float * s) {
    const int keys_of = FEW_SUMS / rows_of > 4 ? 4 : FEW_SUMS / rows_of;
    q += r * dq;
    s += r * FEW_BLOCK;
    for (int h = 0; h < k->n_heads; h++, q += rows * dq, s += rows * FEW_BLOCK) {
        if (k->ahead && r == 0) {
            few_prefetch(k->ahead, k->n);
        }
        int j = 0;
        for (; j + keys_of <= k->n; j += keys_of) {
            few_logits_block(rows_of, keys_of, type, k->row + j, h * k->head, d, q, dq, s + j);
        }
        for (; j < k->n; j++) {
            few_logits_block(rows_of, 1, type, k->row + j, h * k->head, d, q, dq, s + j);
        }
    }
}

/* acc[rows_of][dv] += p[rows_of][n] * v, vectors_of vectors of each row at a time */
PLONG_INLINE void few_values_block(
    const int rows_of, const int vectors_of, const int32_t type, const struct few_rows * v, size_t at, int i0,
    const float * p, float * acc, int dv) {
    vf sum[16];
    for (int r = 0; r < rows_of; r++) {
        for (int i = 0; i < vectors_of; i++) {
            sum[r * vectors_of + i] = vf_load(acc + r * dv + i0 + i * VW);
        }
    }
    for (int j = 0; j < v->n; j++) {
        vf x[8];
        for (int i = 0; i < vectors_of; i++) {
            x[i] = few_load(type, v->row[j] + at, i0 + i * VW);
        }
        for (int r = 0; r < rows_of; r++) {
            const vf y = vf_set1(p[r * FEW_BLOCK + j]);
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

PLONG_INLINE void few_values_rows(
    const int rows_of, const int32_t type, const struct few_rows * v, int rows, int r, int d, const float * p,
    float * acc, int dv) {
    const int vectors_of = FEW_SUMS / rows_of > 4 ? 4 : FEW_SUMS / rows_of;
    p += r * FEW_BLOCK;
    acc += r * dv;
    for (int h = 0; h < v->n_heads; h++, p += rows * FEW_BLOCK, acc += rows * dv) {
        if (v->ahead && r == 0) {
            few_prefetch(v->ahead, v->n);
        }
        int i = 0;
        for (; i + vectors_of * VW <= d; i += vectors_of * VW) {
            few_values_block(rows_of, vectors_of, type, v, h * v->head, i, p, acc, dv);
        }
        for (; i < d; i += VW) {
            few_values_block(rows_of, 1, type, v, h * v->head, i, p, acc, dv);
        }
    }
}

#define FEW_FOR_TYPE(call, rows_of, x, ...)                                        \
    switch ((x)->type) {                                                           \
        case GGML_TYPE_F16: call(rows_of, GGML_TYPE_F16, x, __VA_ARGS__); break;   \
        case GGML_TYPE_BF16: call(rows_of, GGML_TYPE_BF16, x, __VA_ARGS__); break; \
        default: call(rows_of, GGML_TYPE_F32, x, __VA_ARGS__); break;              \
    }

#define FEW_FOR_ROWS(call, rows_of, x, ...)                   \
    switch (rows_of) {                                        \
        case 8: FEW_FOR_TYPE(call, 8, x, __VA_ARGS__) break;  \
        case 4: FEW_FOR_TYPE(call, 4, x, __VA_ARGS__) break;  \
        case 2: FEW_FOR_TYPE(call, 2, x, __VA_ARGS__) break;  \
        default: FEW_FOR_TYPE(call, 1, x, __VA_ARGS__) break; \
    }

static inline int few_step(int rows) { return rows >= 8 ? 8 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1; }

/* d: a multiple of VW */
static void few_logits(const struct few_rows * k, int rows, int d, const float * q, int dq, float * s) {
    for (int r = 0, step; r < rows; r += step) {
        step = few_step(rows - r);
        FEW_FOR_ROWS(few_logits_rows, step, k, rows, r, d, q, dq, s)
    }
}

static void few_values(const struct few_rows * v, int rows, int d, const float * p, float * acc, int dv) {
    for (int r = 0, step; r < rows; r += step) {
        step = few_step(rows - r);
        FEW_FOR_ROWS(few_values_rows, step, v, rows, r, d, p, acc, dv)
    }
}

#endif
