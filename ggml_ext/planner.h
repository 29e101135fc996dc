/* planner.h - shared by the files of the planner: work.c calls tiles.c, ranges.c and readers.c, in this order. */
#ifndef PLONG_PLANNER_H
#define PLONG_PLANNER_H

#include "work.h"

/* An array that grows. Once memory has run out, everything appended is lost and `failed` is set. */
struct plong_list {
    char *  at;
    int32_t n, room;
    size_t  size; /* of an element */
    bool    failed;
};

/* Room for n more elements at the end, which the caller writes; NULL when memory has run out. */
void * plong_extend(struct plong_list * list, int32_t n);

/* Appends a copy of an element. */
void plong_append(struct plong_list * list, const void * element);

struct plong_planner {
    const struct plong_batch *  batch;
    const struct plong_shape *  shape;
    const struct plong_limits * limits;
    struct plong_list           tiles, ranges, readers, rows, counts;
    int64_t                     n_chosen; /* room for chosen ranges of the tiles so far */
};

/* tiles.c: cuts the batch into tiles and chooses their spans. It leaves their ranges empty. */
void plong_plan_tiles(struct plong_planner * p);

/* ranges.c: appends the ranges of a tile, and their readers. */
void plong_plan_ranges(struct plong_planner * p, struct plong_tile * tile);

/* readers.c: appends the rows of tokens [tok, tok_end) of the tile that read through a branch (-1: all of them read set
 * parts), of heads whose number is `offset` modulo its rate; returns their index. */
struct plong_tokens {
    int32_t beg, end;
};
int32_t plong_plan_readers(
    struct plong_planner * p, const struct plong_tile * tile, int branch, int32_t offset, struct plong_tokens tokens);

/* Whether a tile of these tokens and heads of a kv head is narrow. */
static inline bool plong_is_narrow(const struct plong_limits * l, int32_t n_tok, int32_t n_h) {
    return n_tok * n_h <= l->narrow;
}

static inline const struct plong_phase * plong_tile_phase(
    const struct plong_planner * p, const struct plong_tile * tile) {
    return plong_batch_phase(p->batch, tile->phase);
}

#endif
