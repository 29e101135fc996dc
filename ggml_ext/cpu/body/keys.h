/* keys.h - walks the ranges of a tile in blocks of keys: ranges -> positions -> cells. */
#ifndef PLONG_CPU_BODY_KEYS_H
#define PLONG_CPU_BODY_KEYS_H

#include "cpu/kernel.h"

struct key_block {
    int                             n;
    const struct plong_tile_range * range;
    int32_t                         pos[PLONG_KEYS];
    int32_t                         cell[PLONG_KEYS];
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
    const struct plong_run *        runs;
    int32_t                         n_runs;
    int32_t                         run; /* last one used */
    int32_t                         cap; /* keys per block */
    const struct plong_tile_range * range;
    const struct plong_tile_range * end;
    const struct plong_tile_range * chosen; /* what follows the ranges of the plan: NULL once the walk is there */
    int32_t                         n_chosen;
    int64_t                         lo, hi; /* of the span */
    struct plong_range              keys;   /* those of the current range at positions [lo, hi) */
    int64_t                         next;   /* next index into it */
};

/* Whether the walk has reached the chosen ranges, which share blocks: they have the same readers, and what holds for the
 * last of some ranges holds for all of them that have its weight. */
static inline bool key_walk_chosen(const struct key_walk * w) { return w->n_chosen > 0 && !w->chosen; }

/* Moves on to the next range. */
static void key_walk_range(struct key_walk * w, const struct plong_tile_range * range) {
    if (range == w->end && w->chosen) {
        range     = w->chosen;
        w->end    = range + w->n_chosen;
        w->chosen = NULL;
    }
    while (key_walk_chosen(w) && range < w->end && (range->keys.end <= w->lo || range->keys.beg >= w->hi)) {
        range++;
    }
    w->range = range;
    w->next  = 0;
    if (range < w->end) {
        w->keys = range->keys;
        if (w->keys.beg < w->lo) {
            const int32_t stride = w->keys.stride;
            w->keys.beg += (int32_t) ((w->lo - w->keys.beg + stride - 1) / stride * stride);
        }
        w->keys.end = w->keys.end < w->hi ? w->keys.end : (int32_t) w->hi;
    }
}

/* Begins with the keys of one of the item's spans. */
static void key_walk_begin(
    struct key_walk * w, const struct plong_call * call, const struct plong_item * item, int32_t span, int32_t cap) {
    const struct plong_tile *       tile   = item->tile;
    const struct plong_tile_range * ranges = plong_work_ranges(call->work);
    w->runs                                = plong_batch_runs(call->batch) + tile->run_beg;
    w->n_runs                              = tile->run_end - tile->run_beg;
    w->run                                 = 0;
    w->cap                                 = cap;
    w->end                                 = ranges + tile->range_end;
    w->chosen                              = NULL;
    w->n_chosen                            = 0;
    if (tile->choice_room > 0) {
        const struct plong_choice * choice = plong_choices(call, (int32_t) (tile - plong_work_tiles(call->work)));
        w->chosen                          = plong_choice_ranges(call) + choice->beg;
        w->n_chosen                        = choice->n;
    }
    w->lo = item->whole ? 0 : plong_span_begin(tile, span);
    w->hi = item->whole ? PLONG_ALL : w->lo + tile->span;
    key_walk_range(w, ranges + tile->range_beg);
}

/* The first run that ends after t; the search starts at the last one used if positions ascend. */
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

/* Gets the next block; false when there are no more keys. Blocks of ranges with stride > 2 are half as long: their keys
 * are at the same place in each page and share few sets of the L2 cache, into which they are prefetched. */
static bool key_walk_next(struct key_walk * w, struct key_block * b) {
    b->n = 0;
    while (w->range < w->end) {
        const struct plong_range * r      = &w->keys;
        const int64_t              count  = plong_range_count(r);
        int                        room   = r->stride > 2 ? w->cap / 2 : w->cap;
        const bool                 chosen = key_walk_chosen(w);
        b->range                          = w->range;
        while (w->next < count && b->n < room) {
            const int32_t t = r->beg + (int32_t) w->next * r->stride;
            w->run          = key_walk_run(w, t);
            if (w->run == w->n_runs) { /* nothing is cached from here on */
                w->next = count;
                break;
            }
            const struct plong_run * run = &w->runs[w->run];
            if (t < run->pos) { /* a hole: skip to the first position of the range inside the run */
                int64_t skip = ((int64_t) run->pos - t + r->stride - 1) / r->stride;
                skip         = skip < count - w->next ? skip : count - w->next;
                w->next += skip;
                continue;
            }
            if (b->n == 0 && r->branch < 0 && !chosen) { /* blocks end at multiples of their size */
                room = w->cap - t % w->cap;
            }
            int64_t take = ((int64_t) run->pos + run->n - t + r->stride - 1) / r->stride;
            take         = take < count - w->next ? take : count - w->next;
            take         = take < room - b->n ? take : room - b->n;
            for (int64_t i = 0; i < take; i++) {
                b->pos[b->n + i]  = t + (int32_t) i * r->stride;
                b->cell[b->n + i] = run->cell + (t - run->pos) + (int32_t) i * r->stride;
            }
            b->n += (int) take;
            w->next += take;
        }
        if (w->next >= count) {
            key_walk_range(w, w->range + 1);
        }
        /* a block never mixes ranges of the plan, nor weights, and its keys ascend */
        const bool mixes = chosen && w->range < w->end && w->range->log2_weight == b->range->log2_weight &&
                           w->range->keys.beg >= b->range->keys.beg;
        if (b->n > 0 && (!mixes || b->n == w->cap)) {
            return true;
        }
    }
    return b->n > 0;
}

#endif
