/* wide_f32.h - many query rows against a packed key block, in float32: K as panels [keys / PANEL][d_k][PANEL], V as
 * panels [d_v / PANEL][BLOCK][PANEL]. */
#ifndef PLONG_CPU_BODY_WIDE_F32_H
#define PLONG_CPU_BODY_WIDE_F32_H

#include "cpu/body/gemm.h"
#include "cpu/body/rows.h"
#include "cpu/body/softmax.h"

typedef float elem;

#include "cpu/body/fixed_none.h"
#include "cpu/body/wide_at_once.h"

#define BLOCK 128 /* keys that are packed at a time */
#define CHUNK 128 /* keys between one softmax and the next: the row length of logits and probabilities */
#define PAD   16  /* logits are padded to a multiple of this */
#define SUB   24  /* rows whose logits and probabilities stay in the L1 cache: a multiple of MR */

static inline void wide_pack_query(elem * dst, const float * q, int dk) { memcpy(dst, q, (size_t) dk * sizeof(float)); }

/* row[n] of d values; stage [VW][pad32(d)]. Keys up to the next multiple of 32 are zeros. Returns whether fixed point
 * can be used for them: never. */
static bool wide_pack_keys(elem * dst, int32_t type, const void * const * row, int n, int d, float * stage) {
    const int ds = plong_pad32(d), bytes = (int) ggml_row_size((enum ggml_type) type, d);
    prefetch_rows(row, 0, PREFETCH_AHEAD, n, bytes);
    for (int j0 = 0; j0 < ((n + 31) & ~31); j0 += VW) {
        prefetch_rows(row, j0 + PREFETCH_AHEAD, VW, n, bytes);
        for (int j = 0; j < VW; j++) {
            if (j0 + j < n) {
                row_to_f32(type, row[j0 + j], stage + j * ds, d);
            } else {
                memset(stage + j * ds, 0, (size_t) ds * sizeof(float));
            }
        }
        float * out = dst + (size_t) (j0 / PANEL * PANEL) * d + j0 % PANEL;
        for (int i = 0; i < d; i += VW) {
            vf r[VW];
            for (int j = 0; j < VW; j++) {
                r[j] = vf_load(stage + j * ds + i);
            }
            vf_transpose(r);
            for (int j = 0; j < VW && i + j < d; j++) {
                vf_store(out + (size_t) (i + j) * PANEL, r[j]);
            }
        }
    }
    return false;
}

/* stage [pad32(d)]; rows up to the next multiple of 32 are zeros */
static void wide_pack_values(elem * dst, int32_t type, const void * const * row, int n, int d, float * stage) {
    const int ds = plong_pad32(d), bytes = (int) ggml_row_size((enum ggml_type) type, d);
    prefetch_rows(row, 0, PREFETCH_AHEAD, n, bytes);
    for (int j = 0; j < ((n + 31) & ~31); j++) {
        prefetch_rows(row, j + PREFETCH_AHEAD, 1, n, bytes);
        if (j < n) {
            row_to_f32(type, row[j], stage, d);
        } else if (j == n) {
            memset(stage, 0, (size_t) ds * sizeof(float));
        }
        for (int i = 0; i < ds; i += PANEL) {
            float * out = dst + (size_t) i * BLOCK + (size_t) j * PANEL;
            for (int x = 0; x < PANEL; x += VW) {
                vf_store(out + x, vf_load(stage + i + x));
            }
        }
    }
}

/* Logits s[SUB][CHUNK] = q[SUB][pad32(d)] * k^T of the first rows, for keys j0 .. j0 + n, padded to a multiple of 32.
 * They are not interleaved with the softmax, which needs the same units. */
static inline struct wide_work wide_begin(const elem * q, const elem * k, int rows, int j0, int n, int d, float * s) {
    const struct matrix_in queries = { q, plong_pad32(d) };
    const struct panels_in keys    = { k + (size_t) j0 * d, d };
    gemm(rows, (n + 31) & ~31, d, queries, keys, (struct matrix_out) { s, CHUNK }, false);
    return (struct wide_work) { 0 };
}

/* Probabilities take the place of the logits. */
static inline elem * wide_probabilities(float * s, elem * p) {
    (void) p;
    return s;
}

static inline void wide_rescale(elem * p, int n, float f) {
    for (int i = 0; i < n; i += VW) {
        vf_store(p + i, vf_mul(vf_load(p + i), vf_set1(f)));
    }
}

static inline void wide_exp(float * s, elem * p, int n, float m, float * l) {
    (void) p;
    softmax_exp(s, n, m, l);
}

/* acc[SUB][dv] += p[SUB][j0 ..] * v of the first rows, for keys j0 .. j0 + n */
static void wide_values(const elem * p, const elem * v, int rows, int j0, int n, int dv, float * acc) {
    const struct matrix_in weights = { p + j0, CHUNK };
    const struct panels_in values  = { v + (size_t) j0 * PANEL, BLOCK };
    gemm(rows, dv, n, weights, values, (struct matrix_out) { acc, dv }, true);
}

#endif
