/*
 * lsh.h - keys chosen by angular hashes, as in HyperAttention (arXiv 2310.05869).
 *
 * A hash has the signs of 16 products with random vectors: two vectors with the angle a between them differ in each with
 * the probability a / pi. Read as a Gray code it is a rank, so that ranks which follow one another differ in one sign
 * only. The candidates of a tile are sorted by their ranks, and by position where these are equal. Each query row has a
 * place in that order, in the middle of the keys with its own rank, and asks for the keys around it: for as many, in each
 * row, that all of them together are the budget of the plan. The rows of a tile read them all.
 *
 * With a position map, queries have another rotation, and so another hash, in each zone of distances: each zone is sorted
 * by itself, and has a part of the budget by its number of keys.
 */
#ifndef PLONG_LSH_H
#define PLONG_LSH_H

#include "choose.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Ranks of n vectors: rows [n][d], d at most 1024. */
PLONG_API void plong_lsh_ranks(const float * rows, int32_t n, int32_t d, uint16_t * ranks);

/* Scratch bytes of plong_choose_hashed(); heads: that share keys. */
PLONG_API size_t plong_lsh_scratch(int32_t d_k, int64_t n_cells, int64_t n_runs, int32_t heads);

/* Writes the choice of a tile from its n pieces, each of them within one page: keys by their hashes, and a sample of the
 * others. */
PLONG_API void plong_choose_hashed(
    const struct plong_call * call, int32_t tile, const struct plong_piece * pieces, int32_t n, void * scratch);

#ifdef __cplusplus
}
#endif

#endif
