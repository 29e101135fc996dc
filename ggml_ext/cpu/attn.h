/*
 * attn.h - the CPU kernels' own types: what dispatch.c hands to a body compiled for one instruction set.
 */
#ifndef PLONG_CPU_ATTN_H
#define PLONG_CPU_ATTN_H

#include "ggml_ext.h"
#include "plan.h"

#define PLONG_ROWS  64 /* most query rows (tokens x heads of a kv head) in a tile */
#define PLONG_KEYS  64 /* keys per block */
#define PLONG_ZONES 3  /* distances that one K rotation serves: near, previous chunk, far */

/* One op call: tensors as pointers and byte strides. Lives as long as the call. */
struct plong_call {
    const char *               q;
    const char *               k;
    const char *               v;
    char *                     out;           /* F32 [d_v, n_head, n_tokens], contiguous */
    size_t                     q_head, q_tok; /* bytes */
    size_t                     k_head, k_cell, k_stream;
    size_t                     v_head, v_cell, v_stream;
    int32_t                    k_type, v_type;            /* enum ggml_type */
    int32_t                    d_k, d_v, n_head, n_group; /* n_group: query heads per kv head */
    struct plong_attn_params   params;
    const struct plong_batch * batch;
    const float *              table; /* rotation table, NULL when the position map is absolute */
};

/* A query tile: n_tok consecutive tokens of one group and n_h consecutive heads of one kv head.
 * Row r = (token r / n_h, head head0 + r % n_h). */
struct plong_tile {
    const struct plong_group * group;
    const struct plong_phase * phase;
    int32_t                    tok; /* first token of the ubatch */
    int32_t                    pos; /* its position */
    int32_t                    n_tok;
    int32_t                    head0;
    int32_t                    n_h;
    int32_t                    split, n_splits; /* this call does the split-th part of the keys */
};

/* Online softmax of one row over some keys: max, sum of exp(logit - max), and acc = sum of exp * v.
 * Empty: m = -INFINITY, l = 0, acc = 0. */
struct plong_state {
    float * m;   /* [rows] */
    float * l;   /* [rows] */
    float * acc; /* [rows][d_v_pad] */
};

struct plong_kernel {
    const char * name;
    bool (*usable)(void);
    /* Scratch bytes that tile() wants for these head sizes. */
    size_t (*scratch)(int32_t d_k, int32_t d_v);
    /* Adds the tile's keys to the (empty) state. scratch is 64-byte aligned. */
    void (*tile)(
        const struct plong_call * call, const struct plong_tile * tile, struct plong_state * state, void * scratch);
    /* Merges b into a, one row: exact. */
    void (*merge)(float * m_a, float * l_a, float * acc_a, float m_b, float l_b, const float * acc_b, int32_t d);
};

extern const struct plong_kernel * const plong_kernels[]; /* best first, NULL ends */

/* Padded row length of accumulators: a multiple of 16 floats. */
static inline int32_t plong_pad16(int32_t d) { return (d + 15) & ~15; }

#endif
