/*
 * kernel.h - the CPU kernels' own types: what dispatch.c hands to a body compiled for one instruction set.
 */
#ifndef PLONG_CPU_KERNEL_H
#define PLONG_CPU_KERNEL_H

#include "ggml_ext.h"
#include "plan.h"

#define PLONG_KEYS         256 /* most keys in a block */
#define PLONG_NARROW       8   /* query rows of a kv head that are computed straight from the cache: decode */
#define PLONG_NARROW_ROWS  256 /* most rows of such a tile, all its kv heads together */
#define PLONG_CLASSES      8   /* most heads of a tile whose plan is dilated: each may read other keys */
#define PLONG_DILATED_ROWS 2   /* factor by which dilated tiles have more rows */
#define PLONG_ZONES        3   /* distances that one K rotation serves: near, previous chunk, far */

static inline bool plong_is_narrow(int32_t n_tok, int32_t n_h) { return n_tok * n_h <= PLONG_NARROW; }

/* What the threads still have to do. */
struct plong_queue;

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
    const struct plong_queue * queue;
    bool                       one_stream; /* plong_one_stream() */
};

/* A query head's number in dilated attention. */
static inline int32_t plong_call_number(const struct plong_call * c, int32_t head) {
    return plong_head_number(head, c->n_head, c->n_head / c->n_group);
}

/* A query tile: n_tok consecutive tokens of one group, and n_h consecutive heads of each of n_kv kv heads (n_kv > 1 only
 * where all of them read the same keys; then n_h is the whole group). Rows in the order [n_kv][n_tok][n_h]. */
struct plong_tile {
    const struct plong_group * group;
    const struct plong_phase * phase;
    int32_t                    tok; /* first token of the ubatch */
    int32_t                    pos; /* its position */
    int32_t                    n_tok;
    int32_t                    head0;
    int32_t                    n_h;
    int32_t                    n_kv;
    int32_t                    segment; /* keys at positions [i * segment, (i + 1) * segment) are merged as a whole */
    int32_t gap_at, gap;                /* from this one on, so many of them hold no keys of the tile and don't count */
    int32_t seg0, seg1;                 /* this call does those of [seg0, seg1) */
    int64_t cost;                       /* about as many (row, key) pairs: set where the tiles are ordered by it */
    int64_t part;                       /* where the state of segment 0 goes if each has one of its own */
};

/* Position at which a segment of the tile begins. */
static inline int64_t plong_segment_begin(const struct plong_tile * t, int32_t segment) {
    return (int64_t) (segment < t->gap_at ? segment : segment + t->gap) * t->segment;
}

static inline int32_t plong_tile_rows(const struct plong_tile * t) { return t->n_kv * t->n_tok * t->n_h; }

/* Online softmax of rows over some keys, in base 2: with logits x * log2(e), l = sum of 2^(x - m), acc = sum of
 * 2^(x - m) * v. m is at most LAZY (softmax.h) below the largest logit. Empty: m = -INFINITY, l = 0, acc anything. */
struct plong_state {
    float * m;   /* [rows] */
    float * l;   /* [rows] */
    float * acc; /* [rows][plong_pad32(d_v)] */
};

struct plong_kernel {
    const char * name;
    bool (*usable)(void);
    const struct plong_kernel * f32; /* what runs instead when the caller asks for float32: itself where it is that */
    /* Scratch bytes that tile() wants for tiles of up to so many rows; maps: some call may have a position map. */
    size_t (*scratch)(int32_t d_k, int32_t d_v, int32_t rows, bool maps);
    /* Adds the tile's keys to the (empty) state. scratch is 64-byte aligned. */
    void (*tile)(
        const struct plong_call * call, const struct plong_tile * tile, struct plong_state * state, void * scratch);
    /* Merges b into a, one row of d values (a multiple of 32): exact. */
    void (*merge)(float * m_a, float * l_a, float * acc_a, float m_b, float l_b, const float * acc_b, int32_t d);
};

/* The tile that this thread gets next unless another is faster, so that its first keys can be fetched. False: none. */
bool plong_queue_peek(const struct plong_queue * queue, struct plong_tile * tile);

extern const struct plong_kernel * const plong_kernels[]; /* best first, NULL ends */

/* Whether this processor's L2 prefetcher runs far ahead of one stream, so that lines are best prefetched in order. */
bool plong_one_stream(void);

const struct plong_kernel * plong_kernel_in_use(void);

/* So many tiles were computed with it. */
void plong_kernel_count(const struct plong_kernel * kernel, int64_t tiles);

static inline int32_t plong_pad16(int32_t d) { return (d + 15) & ~15; }

/* Padded row length of accumulators and packed rows. */
static inline int32_t plong_pad32(int32_t d) { return (d + 31) & ~31; }

/* Most query rows in a tile: as many as share one pass over the packed keys while their queries and accumulators stay
 * in a core's L2 cache. */
static inline int32_t plong_row_limit(int32_t d_k, int32_t d_v) {
    const int32_t d = d_k > d_v ? d_k : d_v;
    return d <= 128 ? 1024 : d <= 256 ? 512 : 256;
}

#endif
