/* sample.h - random keys of those that a tile has not chosen otherwise: one of each stratum. */
#ifndef PLONG_SAMPLE_H
#define PLONG_SAMPLE_H

#include "choose.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The keys of the pieces [n], in ascending order, but those that are chosen[n_chosen], which ascend. */
struct plong_rest {
    const struct plong_piece * pieces;
    int32_t                    n;
    const int32_t *            chosen;
    int32_t                    n_chosen;
    int64_t                    n_keys; /* that are left: plong_rest_keys() */
};

/* A random number that is a function of x: SplitMix64's (Steele et al., 2014). */
uint64_t plong_mix(uint64_t x);

int64_t plong_rest_keys(const struct plong_rest * rest);

/* A number that hangs on nothing else than the plan's seed, the layer, the kv head and the query block of a tile. */
uint64_t plong_sample_place(const struct plong_call * call, const struct plong_tile * tile);

/* A walk over strata of the rest: consecutive keys, as many in each, but for some that have one more and come first. */
struct plong_strata {
    const struct plong_rest * rest;
    uint64_t                  place;
    int32_t                   n, next;
    int64_t                   beg;    /* of the next stratum */
    int64_t                   before; /* keys before the piece */
    int32_t                   piece, chosen;
    /* of the last stratum */
    int32_t pos, cell; /* its key */
    int64_t size;
};

struct plong_strata plong_strata_of(const struct plong_rest * rest, int32_t n, uint64_t place);

/* Draws a key of the next stratum; false after the last. */
bool plong_strata_next(struct plong_strata * s);

#ifdef __cplusplus
}
#endif

#endif
