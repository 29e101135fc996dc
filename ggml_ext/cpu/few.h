/*
 * few.h - logits and P*V for a few query rows (decode), straight from the cache in its own type. `rows_of`, `keys_of`,
 * `type` are constants at every call, so the loops unroll.
 */
#ifndef PLONG_CPU_FEW_H
#define PLONG_CPU_FEW_H

#include "attn.h"
#include "simd.h"

#define FEW_BLOCK  64                 /* keys between one softmax and the next: the row length of logits */
#define FLAT_PAGES 8                  /* of 4 KiB that take turns */
#define FEW_NEAR   8                  /* keys ahead that are fetched from L2 into L1 */
#define FEW_SUMS   (VW == 8 ? 8 : 16) /* sums in flight: as many as registers hold beside the operands */

/*
 * The cells of the next block, asked for while this one is computed. Memory takes turns between some pages of 4 KiB: a
 * core has few requests of its own in flight, but its L2 prefetcher runs ahead in each page that it sees growing.
 */
struct few_ahead {
    int    n_heads;
    int    credit; /* bytes of heads still to be asked for, times n_heads */
    size_t stride; /* from cell to cell */
    /* Cells that are all that lies between two addresses: 256 bytes of FLAT_PAGES pages in turn */
    const char * page; /* the first; NULL for others */
    const char * from;
    const char * until;
    uint32_t     n_units, next;
    /* Others: `pages` times `in_page` cells in turn */
    const int32_t * cell; /* [n] */
    int             n;
    const char *    base;
    int             unit;            /* lines of 64 bytes that are asked for together */
    int             units;           /* in a cell, all heads together */
    int             in_page;         /* cells */
    int             pages;           /* that take turns */
    int             group, k, at, p; /* next: that unit of cell group + p * in_page + k */
};

/* head: bytes from head to head, of a row where there is one */
static inline struct few_ahead few_ahead(
    const int32_t * cell, int n, int n_heads, const char * base, size_t stride, size_t head) {
    const int        lines = (int) ((head * (size_t) n_heads + 63) / 64), units = (lines + 3) / 4;
    const size_t     step = n > 1 && cell[1] > cell[0] ? (size_t) (cell[1] - cell[0]) * stride : stride;
    struct few_ahead a    = {
        .n_heads = n_heads,
        .stride  = stride,
        .cell    = cell,
        .n       = n,
        .base    = base,
        .unit    = (lines + units - 1) / units,
        .units   = units,
        .in_page = step > 0 && step < 4096 ? (int) (4096 / step) : 1,
        .pages   = lines > 24 ? 8 : 16,
    };
    if (n > 0 && cell[n - 1] - cell[0] == n - 1 && head * (size_t) n_heads == stride) {
        a.from    = base + (size_t) cell[0] * stride;
        a.until   = a.from + (size_t) n * stride;
        a.page    = (const char *) ((uintptr_t) a.from & ~(uintptr_t) 4095);
        a.n_units = (uint32_t) ((a.until - a.page + FLAT_PAGES * 4096 - 1) / (FLAT_PAGES * 4096)) * FLAT_PAGES * 16;
    }
    return a;
}

static inline void few_ask(const char * x, int lines) {
    for (int i = 0; i < lines; i++) {
        __builtin_prefetch(x + 64 * i, 0, 2);
    }
}

PLONG_INLINE void few_prefetch_flat(struct few_ahead * a) {
    while (a->credit > 0 && a->next < a->n_units) {
        const uint32_t i = a->next++, all = 16 * FLAT_PAGES;
        const char *   x = a->page + 256 * (size_t) (i / all * all + i % FLAT_PAGES * 16 + i / FLAT_PAGES % 16);
        if (x < a->until && x + 256 > a->from) {
            few_ask(x, 4);
            a->credit -= 256 * a->n_heads;
        }
    }
}

PLONG_INLINE void few_prefetch_cells(struct few_ahead * a) {
    while (a->credit > 0 && a->group < a->n) {
        const int at = a->group + a->p * a->in_page + a->k;
        if (at < a->n) {
            few_ask(a->base + (size_t) a->cell[at] * a->stride + 64 * (size_t) (a->at * a->unit), a->unit);
            a->credit -= (int) a->stride / a->units * a->n_heads;
        }
        if (++a->p == a->pages) {
            a->p = 0;
            if (++a->at == a->units) {
                a->at = 0;
                if (++a->k == a->in_page) {
                    a->k = 0;
                    a->group += a->pages * a->in_page;
                }
            }
        }
    }
}

/* Asks for what n more rows of one head take. */
PLONG_INLINE void few_prefetch(struct few_ahead * a, int n) {
    a->credit += n * (int) a->stride;
    if (a->page) {
        few_prefetch_flat(a);
    } else {
        few_prefetch_cells(a);
    }
}

PLONG_INLINE void few_near(const char * x, int bytes) {
    for (int i = 0; i < bytes; i += 64) {
        __builtin_prefetch(x + i, 0, 3);
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
    int dq, float * s, struct few_ahead * ahead) {
    const int step = (d / keys_of + VW - 1) / VW * VW;
    int       left = keys_of; /* keys ahead that are still to be asked for */
    vf        sum[16];
    for (int i = 0; i < rows_of * keys_of; i++) {
        sum[i] = vf_zero();
    }
    for (int i = 0; i < d; i += VW) {
        vf x[16];
        if (i % step == 0) {
            few_prefetch(ahead, 1);
            left--;
        }
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
    few_prefetch(ahead, left); /* head sizes that keys_of vectors do not divide */
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

PLONG_INLINE void few_logits_rows(
    const int rows_of, const int32_t type, const char * const * k, int n, size_t at, int d, const float * q, int dq,
    float * s, struct few_ahead * ahead) {
    const int keys_of = FEW_SUMS / rows_of > 4 ? 4 : FEW_SUMS / rows_of;
    int       j       = 0;
    for (; j + keys_of <= n; j += keys_of) {
        for (int i = j + FEW_NEAR; i < j + FEW_NEAR + keys_of && i < n; i++) {
            few_near(k[i] + at, d * (type == GGML_TYPE_F32 ? 4 : 2));
        }
        few_logits_block(rows_of, keys_of, type, k + j, at, d, q, dq, s + j, ahead);
    }
    for (; j < n; j++) {
        few_logits_block(rows_of, 1, type, k + j, at, d, q, dq, s + j, ahead);
    }
}

/* acc[rows_of][dv] += p[rows_of][n] * v, vectors_of vectors of each row at a time */
PLONG_INLINE void few_values_block(
    const int rows_of, const int vectors_of, const int32_t type, const char * const * v, int n, size_t at, int i0,
    const float * p, float * acc, int dv, struct few_ahead * ahead, int share) {
    vf sum[16];
    for (int r = 0; r < rows_of; r++) {
        for (int i = 0; i < vectors_of; i++) {
            sum[r * vectors_of + i] = vf_load(acc + r * dv + i0 + i * VW);
        }
    }
    for (int j = 0; j < n; j++) {
        vf x[8];
        if (j % 2 == 0) {
            few_prefetch(ahead, share);
        }
        if (j + FEW_NEAR < n) {
            const int size = type == GGML_TYPE_F32 ? 4 : 2;
            few_near(v[j + FEW_NEAR] + at + i0 * size, vectors_of * VW * size);
        }
        for (int i = 0; i < vectors_of; i++) {
            x[i] = few_load(type, v[j] + at, i0 + i * VW);
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
    const int rows_of, const int32_t type, const char * const * v, int n, size_t at, int d, const float * p,
    float * acc, int dv, struct few_ahead * ahead) {
    const int vectors_of = FEW_SUMS / rows_of > 4 ? 4 : FEW_SUMS / rows_of;
    const int share      = (2 * vectors_of * VW + d - 1) / d; /* of the keys ahead, so that all passes ask for all */
    int       i          = 0;
    for (; i + vectors_of * VW <= d; i += vectors_of * VW) {
        few_values_block(rows_of, vectors_of, type, v, n, at, i, p, acc, dv, ahead, share);
    }
    for (; i < d; i += VW) {
        few_values_block(rows_of, 1, type, v, n, at, i, p, acc, dv, ahead, 0);
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

/* s[rows][FEW_BLOCK] = q[rows][dq] * k^T; K rows of d values (a multiple of VW) at k[n] + at, in f32, f16 or bf16 */
static void few_logits(
    int rows, int32_t type, const char * const * k, int n, size_t at, int d, const float * q, int dq, float * s,
    struct few_ahead * ahead) {
    for (int r = 0, step; r < rows; r += step) {
        step = few_step(rows - r);
        FEW_FOR_ROWS(few_logits_rows, step, type, k, n, at, d, q + r * dq, dq, s + r * FEW_BLOCK, ahead)
    }
}

/* acc[rows][dv] += p[rows][FEW_BLOCK] * v; V rows as K's in few_logits() */
static void few_values(
    int rows, int32_t type, const char * const * v, int n, size_t at, int d, const float * p, float * acc, int dv,
    struct few_ahead * ahead) {
    for (int r = 0, step; r < rows; r += step) {
        step = few_step(rows - r);
        FEW_FOR_ROWS(few_values_rows, step, type, v, n, at, d, p + r * FEW_BLOCK, acc + r * dv, dv, ahead)
    }
}

#endif
