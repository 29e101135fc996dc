/* keys.h - walks the keys of a tile in blocks: plan ranges -> positions -> cells. */
#ifndef PLONG_CPU_KEYS_H
#define PLONG_CPU_KEYS_H

#include "attn.h"

struct key_block {
    int     n;
    int     branch; /* of the range the keys come from; -1: set parts */
    int32_t pos[PLONG_KEYS];
    int32_t cell[PLONG_KEYS];
};

struct key_walk {
    const struct plong_run * runs;
    int32_t                  n_runs;
    int32_t                  run; /* last one used */
    struct plong_range       range[PLONG_MAX_RANGES];
    int                      n_ranges;
    int                      at;   /* current range */
    int64_t                  next; /* next index into it */
    int64_t                  left; /* keys of this split still to come, holes included */
};

static void key_walk_begin(struct key_walk * w, const struct plong_call * call, const struct plong_tile * tile) {
    const struct plong_slot * slot = plong_batch_slots(call->batch) + tile->group->slot;
    w->runs                        = plong_batch_runs(call->batch) + slot->run_beg;
    w->n_runs                      = slot->run_end - slot->run_beg;
    w->run                         = 0;
    w->n_ranges   = plong_phase_ranges(tile->phase, tile->pos, tile->pos + tile->n_tok - 1, tile->head0, w->range);
    int64_t total = 0;
    for (int i = 0; i < w->n_ranges; i++) {
        total += plong_range_count(&w->range[i]);
    }
    const int64_t beg = total * tile->split / tile->n_splits;
    w->left           = total * (tile->split + 1) / tile->n_splits - beg;
    w->at             = 0;
    w->next           = beg;
    while (w->at < w->n_ranges && w->next >= plong_range_count(&w->range[w->at])) {
        w->next -= plong_range_count(&w->range[w->at++]);
    }
}

/* First run that ends after t, at or after the last one used when positions ascend. */
static int32_t key_walk_run(const struct key_walk * w, int32_t t) {
    int32_t lo = w->run < w->n_runs && w->runs[w->run].pos <= t ? w->run : 0;
    int32_t hi = w->n_runs;
    if (lo < hi && t < w->runs[lo].pos + w->runs[lo].n) {
        return lo;
    }
    while (lo < hi) {
        const int32_t mid = lo + (hi - lo) / 2;
        if (w->runs[mid].pos + w->runs[mid].n <= t) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo;
}

/* False when there are no more keys. */
static bool key_walk_next(struct key_walk * w, struct key_block * b) {
    b->n = 0;
    while (w->left > 0 && w->at < w->n_ranges) {
        const struct plong_range * r     = &w->range[w->at];
        const int64_t              count = plong_range_count(r);
        b->branch                        = r->branch;
        while (w->left > 0 && w->next < count && b->n < PLONG_KEYS) {
            const int32_t t = r->beg + (int32_t) w->next * r->stride;
            w->run          = key_walk_run(w, t);
            if (w->run == w->n_runs) { /* nothing cached from here on */
                w->left -= count - w->next;
                w->next = count;
                break;
            }
            const struct plong_run * run = &w->runs[w->run];
            if (t < run->pos) { /* a hole: on to the first position of the range inside the run */
                int64_t skip = ((int64_t) run->pos - t + r->stride - 1) / r->stride;
                skip         = skip < count - w->next ? skip : count - w->next;
                w->next += skip;
                w->left -= skip;
                continue;
            }
            int64_t take = ((int64_t) run->pos + run->n - t + r->stride - 1) / r->stride;
            take         = take < count - w->next ? take : count - w->next;
            take         = take < w->left ? take : w->left;
            take         = take < PLONG_KEYS - b->n ? take : PLONG_KEYS - b->n;
            for (int64_t i = 0; i < take; i++) {
                b->pos[b->n + i]  = t + (int32_t) i * r->stride;
                b->cell[b->n + i] = run->cell + (t - run->pos) + (int32_t) i * r->stride;
            }
            b->n += (int) take;
            w->next += take;
            w->left -= take;
        }
        if (w->next >= count) {
            w->at++;
            w->next = 0;
        }
        if (b->n > 0) { /* a block never mixes ranges */
            return true;
        }
    }
    return false;
}

#endif
