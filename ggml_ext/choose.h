/*
 * choose.h - keys that a layer chooses when the op runs: the index of keys that it looks at, the blocks that it takes, and
 * its sample of the others.
 *
 * The index is in pages of PLONG_PAGE neighbouring cells of a kv head. For plans with lsh it has a hash of each key
 * (lsh.h), for plans with topk each key in 4 bits. Within a page, dim d of a key
 * is about lo[d] + step[d] * nibble, so the bounds of a dim are its own: keys have a few dims that are much larger than
 * the others, but vary little from key to key (KIVI, arXiv 2402.02750). Nibbles are in groups of four dims, so that a
 * processor multiplies four at a time.
 *
 * The candidates of a tile are cut into pieces: the blocks of the plan, or parts of these where the cells of a sequence
 * do not follow one another. A backend estimates the share of the softmax that each piece gets (its weight), averaged over
 * some rows of the tile; plong_choose() takes the best. Where a plan chooses no blocks, pieces are as long as the runs of
 * cells, and have no weights.
 */
#ifndef PLONG_CHOOSE_H
#define PLONG_CHOOSE_H

#include "work.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- index ---------------------------------------------------------------------------------------------------- */

/* The 4 bits of a page. nibbles: [quads][2][PLONG_PAGE] bytes, where byte 4 * j + i of line l has dim i of the quad, of key 32 * l + j in
 * its low half and of key 32 * l + 16 + j in its high half. Bounds: lo int16 and step uint8 of each dim, padded to 32 with
 * zeros, and their units. Of a kv head, first come the nibbles of all pages, then their bounds, which are read far more
 * often, then the hashes. */
struct plong_index_page {
    uint8_t * nibbles;
    int16_t * lo;    /* times units[0] */
    uint8_t * step;  /* times units[1] */
    float *   units; /* [2] */
};

#define PLONG_LO_MOST 2047 /* of lo: sums of products of two such numbers fit into int32 */

/* Groups of four dims; dims that have bounds. */
static inline int32_t plong_quads(int32_t d_k) { return (d_k + 3) / 4; }
static inline int32_t plong_bounded(int32_t d_k) { return (d_k + 31) & ~31; }

/* Bytes of a page's nibbles; of a page with these parts of an index: both are multiples of 64. */
static inline size_t plong_nibble_bytes(int32_t d_k) { return (size_t) plong_quads(d_k) * 2 * PLONG_PAGE; }
PLONG_API size_t     plong_page_bytes(int32_t parts, int32_t d_k);

/* The pages of a kv head in the call's index. */
struct plong_index_head {
    char *     nibbles;
    char *     bounds;
    size_t     nibble_bytes, bound_bytes; /* from page to page */
    size_t     dims;                      /* that have bounds */
    uint16_t * ranks;                     /* [pages][PLONG_PAGE] hashes */
};

PLONG_API struct plong_index_head plong_index_of(const struct plong_call * call, int32_t stream, int32_t kv);

static inline struct plong_index_page plong_page_at(const struct plong_index_head * head, int32_t page) {
    char * const            bounds = head->bounds + (size_t) page * head->bound_bytes;
    struct plong_index_page page_at;
    page_at.nibbles = (uint8_t *) head->nibbles + (size_t) page * head->nibble_bytes;
    page_at.lo      = (int16_t *) bounds;
    page_at.step    = (uint8_t *) bounds + 2 * head->dims;
    page_at.units   = (float *) (bounds + 3 * head->dims);
    return page_at;
}

/* Writes a page of the call's index for a kv head, from K. rows: f32 [PLONG_PAGE][d_k] of scratch. */
PLONG_API void plong_page_write(const struct plong_call * call, struct plong_page page, int32_t kv, float * rows);

/* ---- pieces --------------------------------------------------------------------------------------------------- */

/* Keys at positions pos .. pos + n, in cells cell .. cell + n, of one page where blocks are chosen. */
struct plong_piece {
    int32_t pos;
    int32_t cell;
    int32_t n;
};

/* Most pieces of any tile when keys are in n_cells cells and n_runs runs. */
PLONG_API int64_t plong_pieces_most(int64_t n_cells, int64_t n_runs);

/* Writes the pieces of a tile's candidates, ascending, and returns their number. */
PLONG_API int32_t
plong_pieces(const struct plong_call * call, const struct plong_tile * tile, struct plong_piece * pieces);

/* The tokens of a tile, counted from its first, whose rows are asked for the weights of pieces. Returns their number, at
 * most PLONG_ASKED. */
#define PLONG_ASKED 4
PLONG_API int32_t plong_asked(const struct plong_call * call, const struct plong_tile * tile, int32_t * tokens);

/* How many of a tile's n pieces, those with the largest rough weights, are weighed again by their keys, after the bounds
 * of their pages; n if all are weighed by their keys at once. */
PLONG_API int32_t plong_closer_look(const struct plong_call * call, const struct plong_tile * tile, int32_t n);

/* Marks the `keep` largest weights in left [n]; order: scratch of n int32. */
PLONG_API void plong_best(const float * weights, int32_t n, int32_t keep, int32_t * order, uint8_t * left);

/* ---- choice --------------------------------------------------------------------------------------------------- */

/* Of a tile: its keys are ranges[beg .. beg + n) of the choices. */
struct plong_choice {
    int32_t beg;
    int32_t n;
    int32_t keys; /* of these ranges */
    int32_t all;  /* 1: they are all that there were to choose */
};

/* Of a token whose tiles are options, after the ranges. */
struct plong_verdict {
    int32_t heads; /* kv heads that read all keys */
    int32_t tile;  /* of one of them */
};

PLONG_API const struct plong_choice *     plong_choices(const struct plong_call * call, int32_t tile);
PLONG_API const struct plong_tile_range * plong_choice_ranges(const struct plong_call * call);

/* Decides which options are computed, when all choices were written: where all kv heads are to read all keys, the choices of
 * all of them become that of one that does. */
PLONG_API void plong_choices_settle(const struct plong_call * call);

/* Whether a tile is an option that is not computed. */
PLONG_API bool plong_tile_idle(const struct plong_call * call, const struct plong_tile * tile);

/* Appends a piece to ranges [*n], whose last it may prolong: keys that all rows of `readers` read. */
PLONG_API void plong_add_piece(
    struct plong_tile_range * ranges, int32_t * n, const struct plong_piece * piece, int32_t readers);

/* Checks of the batch among the tokens of a tile: the first, counted among those of the batch, and its place
 * in the tile. They are plong_plan.check tokens apart. Returns their number. */
PLONG_API int32_t
plong_tile_checks(const struct plong_call * call, const struct plong_tile * tile, int32_t * first, int32_t * token);

/* Tries a choice out on the checks of a tile, whose exact results are known. */
struct plong_trial {
    /* Adds pieces[which[0 .. n)], `which` ascending, to those that were added before, and returns the relative error of the
     * worst check: ||exact - sparse|| / ||exact|| over all heads of the tile. */
    float (*add)(void * self, const struct plong_piece * pieces, const int32_t * which, int32_t n);
    void * self;
};

/* Writes the choice of a tile: the pieces `order` [k], and a sample of the keys of the others. Sorts order. */
PLONG_API void plong_choose_these(
    const struct plong_call * call, int32_t tile, const struct plong_piece * pieces, int32_t n, int32_t * order,
    int32_t k);

/* The pieces of a tile, of which it chooses. */
struct plong_candidates {
    const struct plong_piece * pieces;
    const float *              weights; /* [n], where it has an index */
    int32_t                    n;
    int32_t *                  order; /* scratch: [n] */
};

struct plong_verifying;

/* Writes the choice of a tile: the pieces with the largest weights, by the budget of its phase, and with a trial (or NULL) as
 * many more as it takes to get the error of the plan; then a sample of the keys of the others, in ranges with the weight that
 * makes them stand for all of these. verifying: where the phase verifies its choice (verify.h), or NULL to read everything
 * there. The result only depends on the pieces, and on the place of the tile. */
PLONG_API void plong_choose(
    const struct plong_call * call, int32_t tile, const struct plong_candidates * from,
    const struct plong_trial * trial, struct plong_verifying * verifying);

#ifdef __cplusplus
}
#endif

#endif
