/* trial.h - tries a choice of keys out on the checks of a tile, whose exact results are known. */
#ifndef PLONG_CPU_TRIAL_H
#define PLONG_CPU_TRIAL_H

#include "cpu/apart.h"

/* Most checks of a tile: plong_plan.check is 16 at least. */
#define PLONG_TILE_CHECKS (PLONG_PAGE / 16)

struct trial {
    const struct plong_call * call; /* of the op that chooses */
    int32_t                   first, n_checks;
    struct apart              checks;
};

/* Bytes of scratch for tiles with up to this many heads, and pieces. */
size_t trial_scratch(const struct ggml_tensor * op, int32_t heads, int64_t pieces);

/* Prepares the trial of a tile. Returns false if it has no checks. */
bool trial_begin(
    struct trial * t, const struct plong_call * call, struct ggml_threadpool * pool, const struct plong_tile * tile,
    int64_t pieces, void * scratch);

/* plong_trial.add */
float trial_add(void * self, const struct plong_piece * pieces, const int32_t * which, int32_t n);

#endif
