/* apart.h - sums of some rows of a tile over keys that it may choose, before it does: a tile of these rows, which the
 * kernel computes from a work of its own. */
#ifndef PLONG_CPU_APART_H
#define PLONG_CPU_APART_H

#include "cpu/queue.h"

/* Tokens first, first + step, .. of a tile: n of them. */
struct apart_tokens {
    int32_t first, n, step;
};

struct apart {
    /* set before it begins */
    const struct plong_kernel * kernel;
    struct ggml_threadpool *    pool;

    struct plong_call     call; /* of the rows */
    struct plong_work *   work;
    struct plong_tile *   tile;    /* its only one */
    struct plong_choice * choices; /* one, and its ranges */
    struct plong_softmax  state;   /* of the keys that were added; rows of acc have plong_pad32(d_v) floats */
    void *                scratch;
    bool                  begun; /* the keys of the plan were added */
};

/* Bytes of scratch for up to this many rows and pieces. */
size_t apart_scratch(const struct ggml_tensor * op, int32_t rows, int64_t pieces);

/* Prepares the sums of some tokens of a tile. scratch: of apart_scratch(). */
void apart_begin(
    struct apart * a, const struct plong_call * call, const struct plong_tile * tile, struct apart_tokens tokens,
    int64_t pieces, void * scratch);

/* Adds pieces[which[0 .. n)], `which` ascending; the first time also the keys that the plan gives to all rows. */
void apart_add(struct apart * a, const struct plong_piece * pieces, const int32_t * which, int32_t n);

#endif
