/* plan.h - what a phase of a plan means, for planners and kernels: only plan.c reads a phase's fields. */
#ifndef PLONG_PLAN_H
#define PLONG_PLAN_H

#include "ggml_ext.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Positions beg, beg + stride, ... < end. branch -1: set parts (sinks, window, global, exact); else a dilated one. */
struct plong_range {
    int32_t beg;
    int32_t end;
    int32_t stride;
    int32_t branch;
};

/* The keys lo <= t <= hi. */
struct plong_bounds {
    int32_t lo;
    int32_t hi;
};

/* ---- the phase as a whole ------------------------------------------------------------------------------------- */

#define PLONG_PHASE_EXACT (-1)

/* Phase `i` of the batch's plan; PLONG_PHASE_EXACT: the one that reads every key. */
PLONG_API const struct plong_phase * plong_batch_phase(const struct plong_batch * batch, int32_t i);

/* Keys before it are read by every row, unless the phase makes the row exact: sinks, or more if some tokens are global.
 * At most PLONG_LONGEST, so that a span can be added to it. */
PLONG_API int32_t plong_sinks_end(const struct plong_phase * ph);

/* Whether every query reads every key. */
PLONG_API bool plong_phase_is_exact(const struct plong_phase * ph);

/* Whether the query at p reads the sinks and a window that begins after position 0, and nothing else. */
PLONG_API bool plong_phase_window(const struct plong_phase * ph, int32_t p, int32_t * begin);

/* Whether the phase, or some phase of the plan, chooses keys when the op runs. */
PLONG_API bool plong_phase_chooses(const struct plong_phase * ph);
PLONG_API bool plong_plan_chooses(const struct plong_plan * plan);

/* Whether it chooses keys by content, for which it needs an index of them. */
PLONG_API bool plong_phase_wants_index(const struct plong_phase * ph);
PLONG_API bool plong_plan_wants_index(const struct plong_plan * plan);

/* Whether these are blocks of keys, by their weights. */
PLONG_API bool plong_phase_weighs(const struct plong_phase * ph);

/* Whether choices of a phase of the batch grow until the plan's error holds. */
PLONG_API bool plong_phase_grows(const struct plong_batch * batch, int32_t phase);

/* The keys from which it chooses for the query at p: [beg, end), all of them outside its set parts. Queries of a block
 * have the same. */
PLONG_API void plong_phase_candidates(const struct plong_phase * ph, int32_t p, int32_t * beg, int32_t * end);

/* The most blocks that it chooses of n. */
PLONG_API int32_t plong_phase_budget(const struct plong_phase * ph, int32_t n);

/* The most keys that it chooses by their hashes, of n; 0 where it does not. */
PLONG_API int32_t plong_phase_hashed(const struct plong_phase * ph, int64_t n);

/* The number of strata from which it samples a key each, when n keys are left that it may sample. */
PLONG_API int32_t plong_phase_sample(const struct plong_phase * ph, int64_t n);
PLONG_API int32_t plong_phase_seed(const struct plong_phase * ph);

/* Whether the number of strata follows from what a query finds (verify.h), and (z / eps)^2, where z is the quantile of the
 * standard normal distribution that is exceeded, on either side, in half of the rows that may fail. */
PLONG_API bool   plong_phase_verifies(const struct plong_phase * ph);
PLONG_API double plong_phase_precision(const struct plong_phase * ph);

/* The most strata of n keys, and the fewest keys to choose from that are not read at once. */
PLONG_API int32_t plong_verify_most(int64_t n);
#define PLONG_VERIFY_LEAST 2048

/* Keys of a block at most (INT32_MAX where it only samples), and queries that choose together. */
PLONG_API int32_t plong_phase_block(const struct plong_phase * ph);
PLONG_API int32_t plong_phase_rows(const struct plong_phase * ph);

/* What it still chooses when the others have this share of the softmax: nothing once `mass` is reached by `least`
 * blocks. */
PLONG_API int32_t plong_phase_least(const struct plong_phase * ph);
PLONG_API float   plong_phase_mass(const struct plong_phase * ph);

/* The first position whose query may leave keys out. */
PLONG_API int32_t plong_phase_dense_end(const struct plong_phase * ph);

/* Number of dilated branches. */
PLONG_API int plong_phase_branches(const struct plong_phase * ph);

/* Number of dilated branches that give queries up to position p keys that no set part gives. */
PLONG_API int plong_phase_branches_at(const struct plong_phase * ph, int32_t p);

/* Whether a query that takes part in a branch also takes part in all finer ones, and reads the branch's keys inside
 * their segments through them. Then each branch is only read outside the segments of the finer ones, and no key is read
 * twice. */
PLONG_API bool plong_phase_nests(const struct plong_phase * ph);

/* Whether a key counts as often as nested branches read it. */
PLONG_API bool plong_phase_counts(const struct plong_phase * ph);

/* ---- sets and branches ---------------------------------------------------------------------------------------- */

/* The rate of branch k: the distance between two keys that it reads. */
PLONG_API int32_t plong_branch_rate(const struct plong_phase * ph, int k);

/* The distance between two queries of a head that take part in branch k: its rate, or 1. */
PLONG_API int32_t plong_branch_step(const struct plong_phase * ph, int k);

/* log_w / ln 2 of every key that is read through branch k, or through a set part for k < 0. */
PLONG_API float plong_branch_log2_weight(const struct plong_phase * ph, int k);

/* Whether rows of branch k must check each key with plong_branch_weight(), to leave out those of earlier branches. */
PLONG_API bool plong_branch_checks(const struct plong_phase * ph, int k);

/* The query takes part in branch k and in those that follow it, up to this one. */
PLONG_API int plong_branch_top(const struct plong_phase * ph, int k, int32_t p, int32_t h);

/* Whether key t is in a set part for a query at p >= t. */
PLONG_API bool plong_phase_in_set(const struct plong_phase * ph, int32_t p, int32_t t);

/* Whether a query at p of head h takes part in dilated branch k. */
PLONG_API bool plong_branch_joins(const struct plong_phase * ph, int k, int32_t p, int32_t h);

/* log_w of key t read through branch k, -INFINITY if this branch does not give it to the query. */
PLONG_API float plong_branch_weight(const struct plong_phase * ph, int k, int32_t p, int32_t h, int32_t t);

/* Whether branch k reads key t for a query at p that takes part in it; t <= p. */
PLONG_API bool plong_branch_reads(const struct plong_phase * ph, int k, int32_t p, int32_t h, int32_t t);

/* First position of the segment of branch k that a query at p reads. */
PLONG_API int32_t plong_branch_begin(const struct plong_phase * ph, int k, int32_t p);

/* Disjoint ranges that cover every key that a set part gives to some query of [p0, p1]; returns their number. */
PLONG_API int plong_set_ranges(const struct plong_phase * ph, int32_t p0, int32_t p1, struct plong_range out[2]);

/* The same for tiles of many rows. A window is a range of its own that begins at a multiple of `align`; then `window`
 * is true, and the last range holds only the window, whatever else covers its positions. So a row gets the same keys in
 * the same blocks whichever rows share its tile. */
PLONG_API int plong_set_ranges_aligned(
    const struct plong_phase * ph, struct plong_bounds p, int32_t align, struct plong_range out[2], bool * window);

/* The first key from which on a query at p reads all keys up to its own position through set parts; before it, only the
 * sinks. */
PLONG_API struct plong_bounds plong_set_bounds(const struct plong_phase * ph, int32_t p);

/* The bounds of the keys that only branch k gives to a query at p of head h: not set parts, nor a finer branch in which
 * the query takes part. nests: plong_phase_nests(). */
PLONG_API struct plong_bounds plong_branch_bounds(
    const struct plong_phase * ph, bool nests, int k, int32_t p, int32_t h);

/* The range of branch k for the queries of [p0, p1] of head h that take part in it, without what set parts give to all
 * of them. False: none takes part, or the range is empty. It may overlap other ranges unless the branches nest;
 * plong_branch_weight() then assigns each (query, key) pair to the right one. */
PLONG_API bool plong_branch_range(
    const struct plong_phase * ph, int k, int32_t p0, int32_t p1, int32_t h, struct plong_range * out);

/* The number of keys that a kernel reads for the query: as plong_phase_count(), but keys that branches share are
 * counted again unless the branches nest. */
PLONG_API int64_t plong_phase_cost(const struct plong_phase * ph, int32_t p, int32_t h);

/* How many keys the query may choose by content. */
PLONG_API int64_t plong_phase_chosen(const struct plong_phase * ph, int32_t p);

/* Whether every head of the query reads every key before it. */
PLONG_API bool plong_phase_reads_all(const struct plong_phase * ph, int32_t p);

/* Last position <= p1 that a tile starting at p0 may hold: tiles do not cross segment boundaries. */
PLONG_API int32_t plong_phase_cut(const struct plong_phase * ph, int32_t p0, int32_t p1);

PLONG_API int64_t plong_range_count(const struct plong_range * r);

#ifdef __cplusplus
}
#endif

#endif
