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

#define PLONG_MAX_RANGES (PLONG_MAX_BRANCHES + 2)

PLONG_API bool plong_phase_is_exact(const struct plong_phase * ph);

/* Whether key t is in a set part for a query at p >= t. */
PLONG_API bool plong_phase_in_set(const struct plong_phase * ph, int32_t p, int32_t t);

/* Whether a query at p of head h takes part in dilated branch k. */
PLONG_API bool plong_branch_joins(const struct plong_phase * ph, int k, int32_t p, int32_t h);

/* log_w of key t read through branch k, -INFINITY when this branch does not give it to the query. */
PLONG_API float plong_branch_weight(const struct plong_phase * ph, int k, int32_t p, int32_t h, int32_t t);

/* Ranges that cover every key some query of [p0, p1] reads, out[PLONG_MAX_RANGES]; returns their number. Ranges of set
 * parts are disjoint; a branch's may overlap others: plong_branch_weight() gives each (query, key) to the right one. */
PLONG_API int plong_phase_ranges(
    const struct plong_phase * ph, int32_t p0, int32_t p1, int32_t h, struct plong_range * out);

/* Last position <= p1 that a tile starting at p0 may hold: tiles do not cross segment boundaries. */
PLONG_API int32_t plong_phase_cut(const struct plong_phase * ph, int32_t p0, int32_t p1);

PLONG_API int64_t plong_range_count(const struct plong_range * r);

#ifdef __cplusplus
}
#endif

#endif
