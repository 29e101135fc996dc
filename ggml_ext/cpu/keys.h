/* keys.h - walks the keys of a tile in blocks: plan ranges -> positions -> cells. */
#ifndef PLONG_CPU_KEYS_H
#define PLONG_CPU_KEYS_H

#include "attn.h"

#define MAX_TILE_RANGES (2 + PLONG_MAX_BRANCHES * PLONG_CLASSES)

/* A range of a tile, and the heads that read it: those with head % rate == offset; set parts are read by all. */
struct tile_range {
    struct plong_range range;
    int32_t            offset;
};

struct key_block {
    int     n;
    int     range; /* index into key_walk.range */
    int32_t pos[PLONG_KEYS];
    int32_t cell[PLONG_KEYS];
};

/* Some keys of a block. */
struct keys {
    int             n;
    const int32_t * pos;  /* [n] ascending */
    const int32_t * cell; /* [n] */
};

static inline struct keys block_keys(const struct key_block * b, int from, int most) {
    const int left = b->n - from;
    return (struct keys) { left < most ? left : most, b->pos + from, b->cell + from };
}

struct key_walk {
    const struct plong_run * runs;
    int32_t                  n_runs;
    int32_t                  run; /* last one used */
    int32_t                  cap; /* keys per block */
    struct tile_range        range[MAX_TILE_RANGES];
    int                      n_ranges;
    int                      at;   /* current range */
    int64_t                  next; /* next index into it */
    int64_t                  left; /* keys of this split still to come, holes included */
};

/* Set parts first, then branch by branch, once for each head offset of the tile. */
static int tile_ranges(const struct plong_tile * tile, struct tile_range * out) {
    const struct plong_phase * ph = tile->phase;
    const int32_t              p0 = tile->pos, p1 = tile->pos + tile->n_tok - 1;
    struct plong_range         set[2];
    const int                  n_set = plong_set_ranges(ph, p0, p1, set);
    int                        n     = 0;
    for (int i = 0; i < n_set; i++) {
        out[n++] = (struct tile_range) { .range = set[i], .offset = 0 };
    }
    if (plong_phase_is_exact(ph) || p1 < ph->dense_below) {
        return n;
    }
    for (int k = 0; k < ph->n_branches; k++) {
        const int32_t rate = ph->rate[k];
        for (int32_t h = 0; h < tile->n_h && h < rate; h++) {
            if (plong_branch_range(ph, k, p0, p1, tile->head0 + h, &out[n].range)) {
                out[n++].offset = (tile->head0 + h) % rate;
            }
        }
    }
    return n;
}

static void key_walk_begin(
    struct key_walk * w, const struct plong_call * call, const struct plong_tile * tile, int32_t cap) {
    const struct plong_slot * slot = plong_batch_slots(call->batch) + tile->group->slot;
    w->runs                        = plong_batch_runs(call->batch) + slot->run_beg;
    w->n_runs                      = slot->run_end - slot->run_beg;
    w->run                         = 0;
    w->cap                         = cap;
    w->n_ranges                    = tile_ranges(tile, w->range);
    int64_t total                  = 0;
    for (int i = 0; i < w->n_ranges; i++) {
        total += plong_range_count(&w->range[i].range);
    }
    const int64_t beg = total * tile->split / tile->n_splits;
    w->left           = total * (tile->split + 1) / tile->n_splits - beg;
    w->at             = 0;
    w->next           = beg;
    while (w->at < w->n_ranges && w->next >= plong_range_count(&w->range[w->at].range)) {
        w->next -= plong_range_count(&w->range[w->at++].range);
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
        const struct plong_range * r     = &w->range[w->at].range;
        const int64_t              count = plong_range_count(r);
        b->range                         = w->at;
        while (w->left > 0 && w->next < count && b->n < w->cap) {
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
            take         = take < w->cap - b->n ? take : w->cap - b->n;
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
