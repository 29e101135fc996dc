/* plan.h - the key ranges of a query tile, as the kernels of every backend walk them. */
#ifndef PLONG_PLAN_H
#define PLONG_PLAN_H

#include "ggml_ext.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Positions beg, beg + stride, ... < end. branch -1: set parts (sinks, window, global, exact); else a dilated branch. */
struct plong_range {
    int32_t beg;
    int32_t end;
    int32_t stride;
    int32_t branch;
};

PLONG_API bool plong_phase_is_exact(const struct plong_phase * ph);

/* Keys before it are read by every row that the phase does not make exact: sinks, or more where some tokens are global.
 * At most PLONG_LONGEST, so that a segment can be added to it. */
static inline int32_t plong_sinks_end(const struct plong_phase * ph) {
    const int32_t head = ph->sinks > ph->global ? ph->sinks : ph->global;
    return head < PLONG_LONGEST ? head : PLONG_LONGEST;
}

/* Whether a query that takes part in a branch takes part in all finer ones, and reads through those what the branch has
 * in their segments. Then each branch is walked outside the finer ones' segments alone, and no key twice. */
PLONG_API bool plong_phase_nests(const struct plong_phase * ph);

/* The last of the branches k, k + 1, ... that the query takes part in one after the other; it takes part in k. */
PLONG_API int plong_branch_top(const struct plong_phase * ph, int k, int32_t p, int32_t h);

/* Whether key t is in a set part for a query at p >= t. */
PLONG_API bool plong_phase_in_set(const struct plong_phase * ph, int32_t p, int32_t t);

/* Whether a query at p of head h takes part in dilated branch k. */
PLONG_API bool plong_branch_joins(const struct plong_phase * ph, int k, int32_t p, int32_t h);

/* log_w of key t read through branch k, -INFINITY when this branch does not give it to the query. */
PLONG_API float plong_branch_weight(const struct plong_phase * ph, int k, int32_t p, int32_t h, int32_t t);

/* Whether branch k reads key t for a query at p that takes part in it; t <= p. */
PLONG_API bool plong_branch_reads(const struct plong_phase * ph, int k, int32_t p, int32_t h, int32_t t);

/* First position of the segment of branch k that a query at p looks at. */
PLONG_API int32_t plong_branch_begin(const struct plong_phase * ph, int k, int32_t p);

/* Disjoint ranges that cover every key that a set part gives to some query of [p0, p1]; returns their number. */
PLONG_API int plong_set_ranges(const struct plong_phase * ph, int32_t p0, int32_t p1, struct plong_range out[2]);

/* The range of branch k, without what set parts give to all of them, for the queries of [p0, p1] of head h that take part
 * in it; false: none does, or it is empty. It may overlap others unless the branches nest: plong_branch_weight() gives
 * each (query, key) to the right one. */
PLONG_API bool plong_branch_range(
    const struct plong_phase * ph, int k, int32_t p0, int32_t p1, int32_t h, struct plong_range * out);

/* Keys that a kernel reads for the query: as plong_phase_count(), but with what branches share counted again unless
 * they nest. */
PLONG_API int64_t plong_phase_cost(const struct plong_phase * ph, int32_t p, int32_t h);

/* Last position <= p1 that a tile starting at p0 may hold: tiles do not cross segment boundaries. */
PLONG_API int32_t plong_phase_cut(const struct plong_phase * ph, int32_t p0, int32_t p1);

PLONG_API int64_t plong_range_count(const struct plong_range * r);

#ifdef __cplusplus
}
#endif

#endif
