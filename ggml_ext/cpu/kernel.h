/*
 * kernel.h - the CPU kernels' own types: what dispatch.c passes to a body compiled for one instruction set.
 */
#ifndef PLONG_CPU_KERNEL_H
#define PLONG_CPU_KERNEL_H

#include "verify.h"

#define PLONG_MAX_D_K     576 /* of a head: multi-head latent attention has 512 and 64 */
#define PLONG_MAX_D_V     512
#define PLONG_KEYS        256 /* most keys in a block */
#define PLONG_NARROW      8   /* up to this many query rows per kv head are computed straight from the cache: decode */
#define PLONG_NARROW_ROWS 256 /* most rows of such a tile, all its kv heads together */
#define PLONG_ZONES       3   /* zones of distances with one rotation of K each: near, previous chunk, far */

/* A tile, or some of its spans. */
struct plong_item {
    const struct plong_tile * tile;
    int32_t                   span_beg, span_end;
    bool                      whole; /* all keys are one span */
};

/* The work that threads still have to do. */
struct plong_queue;

struct plong_kernel {
    const char * name;
    bool (*usable)(void);
    const struct plong_kernel * f32; /* what runs when float32 is requested: itself if it computes in float32 */
    /* Scratch bytes that run() needs for tiles of up to this many rows; maps: a call may have a position map. */
    size_t (*scratch)(int32_t d_k, int32_t d_v, int32_t rows, bool maps);
    /* Adds the keys of the item's spans to the (empty) state, whose acc is [rows][plong_pad32(d_v)]. scratch is 64-byte
     * aligned. */
    void (*run)(
        const struct plong_call * call, const struct plong_queue * queue, const struct plong_item * item,
        struct plong_softmax * state, void * scratch);
    /* Scratch bytes that weigh() needs for this many rows and pieces. */
    size_t (*weigh_scratch)(int32_t d_k, int32_t rows, int64_t pieces, bool maps);
    /* Estimates the share of the softmax over n pieces that each of them gets, from the index, as a mean over the rows of
     * some tokens of the tile: weights [n]. Returns what each row has of each piece, in scratch; its stride is 0 if some
     * pieces only had a rough look. */
    struct plong_terms (*weigh)(
        const struct plong_call * call, const struct plong_tile * tile, const struct plong_piece * pieces, int32_t n,
        float * weights, void * scratch);
    /* Merges b into a, one row of d values (a multiple of 32): exact. */
    void (*merge)(float * m_a, float * l_a, float * acc_a, float m_b, float l_b, const float * acc_b, int32_t d);
    /* A row of d values of an enum ggml_type in float32: dst [plong_pad32(d)] */
    void (*to_f32)(int32_t type, const void * src, float * dst, int32_t d);
};

/* The item that this thread gets next unless another is faster, so that its first keys can be fetched. False: none. */
bool plong_queue_peek(const struct plong_queue * queue, struct plong_item * item);

extern const struct plong_kernel * const plong_kernels[]; /* best first, NULL ends */

/* Whether this processor's L2 prefetcher runs far ahead of one stream, so that lines are best prefetched in order. */
bool plong_one_stream(void);

const struct plong_kernel * plong_kernel_in_use(void);

/* What runs at a precision, of enum plong_precision. */
const struct plong_kernel * plong_kernel_at(int32_t precision);

/* Counts tiles that were computed with the kernel. */
void plong_kernel_count(const struct plong_kernel * kernel, int64_t tiles);

static inline int32_t plong_pad16(int32_t d) { return (d + 15) & ~15; }

/* Padded row length of accumulators and packed rows. */
static inline int32_t plong_pad32(int32_t d) { return (d + 31) & ~31; }

/* Takes the next `size` bytes of scratch, in whole cache lines. */
static inline void * take_scratch(uintptr_t * at, size_t size) {
    void * part = (void *) *at;
    *at += (size + 63) & ~(size_t) 63;
    return part;
}

/* Most query rows in a tile: as many as share one pass over the packed keys while their queries and accumulators stay
 * in a core's L2 cache. */
static inline int32_t plong_row_limit(int32_t d_k, int32_t d_v) {
    const int32_t d = d_k > d_v ? d_k : d_v;
    return d <= 128 ? 1024 : d <= 256 ? 512 : 256;
}

#endif
