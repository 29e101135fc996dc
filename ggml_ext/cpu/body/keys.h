/* keys.h - walks the keys of a tile in blocks: plan ranges -> positions -> cells. */
#ifndef PLONG_CPU_BODY_KEYS_H
#define PLONG_CPU_BODY_KEYS_H

#include "cpu/kernel.h"

#define MAX_TILE_RANGES (PLONG_DILATED_ROWS * (2 + PLONG_MAX_BRANCHES * PLONG_CLASSES))

/* A range of a tile, and the rows that read it now: those of its tokens [tok, tok_end) whose heads have a number with
 * number % rate == offset; set parts are read by all heads. tail: of the window alone, whatever else covers these
 * positions. */
struct tile_range {
    struct plong_range range;
    int32_t            offset;
    int32_t            tok, tok_end;
    bool               tail;
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
};

/* The set parts of a tile of many rows. Sinks and window are never one range, and the window's begins where a tile of the
 * matrix unit does: a row gets the same keys in the same blocks whichever rows are beside it. */
static int wide_ranges(const struct plong_phase * ph, int32_t p0, int32_t p1, struct plong_range out[2]) {
    const int32_t head = plong_sinks_end(ph), end = p1 + 1;
    const int32_t beg = p0 - ph->window + 1;
    int           n   = 0;
    if (head > 0) {
        out[n++] = (struct plong_range) { .beg = 0, .end = head < end ? head : end, .stride = 1, .branch = -1 };
    }
    out[n++] = (struct plong_range) { .beg = beg > 0 ? beg & ~31 : 0, .end = end, .stride = 1, .branch = -1 };
    return n;
}

/* Appends a range that about `rows` rows of the tile read. Where these are more than stay in a core's L2 cache, one half
 * goes over all keys after the other. */
static int add_range(
    const struct plong_call * call, const struct plong_tile * tile, struct tile_range * out, int n,
    const struct tile_range * range, int32_t rows) {
    const int32_t limit = plong_row_limit(call->d_k, call->d_v), passes = (rows + limit - 1) / limit;
    const int32_t tokens = (tile->n_tok + passes - 1) / passes;
    for (int32_t tok = 0; tok < tile->n_tok; tok += tokens) {
        out[n]         = *range;
        out[n].tok     = tok;
        out[n].tok_end = tok + tokens < tile->n_tok ? tok + tokens : tile->n_tok;
        n++;
    }
    return n;
}

/* Set parts first, then branch by branch, once for each head offset of the tile. */
static int tile_ranges(const struct plong_call * call, const struct plong_tile * tile, struct tile_range * out) {
    const struct plong_phase * ph = tile->phase;
    const int32_t              p0 = tile->pos, p1 = tile->pos + tile->n_tok - 1, rows = plong_tile_rows(tile);
    const bool                 window = ph->window > 0 && ph->window != PLONG_ALL && p0 >= ph->dense_below;
    const bool                 wide   = window && !plong_is_narrow(tile->n_tok, tile->n_h);
    struct plong_range         set[2];
    const int                  n_set = wide ? wide_ranges(ph, p0, p1, set) : plong_set_ranges(ph, p0, p1, set);
    int                        n     = 0;
    for (int i = 0; i < n_set; i++) {
        const struct tile_range range = { .range = set[i], .tail = wide && i == n_set - 1 };
        n                             = add_range(call, tile, out, n, &range, rows);
    }
    if (plong_phase_is_exact(ph) || p1 < ph->dense_below) {
        return n;
    }
    for (int k = 0; k < ph->n_branches; k++) {
        const int32_t rate = ph->rate[k], first = n;
        const int32_t most = ph->align == PLONG_ALIGN_SEGMENT ? (rows + rate - 1) / rate : rows;
        for (int32_t h = 0; h < tile->n_h; h++) {
            struct tile_range range = { .offset = plong_call_number(call, tile->head0 + h) % rate };
            if (n > first && range.offset == out[first].offset) { /* from here on they come again */
                break;
            }
            if (plong_branch_range(ph, k, p0, p1, range.offset, &range.range)) {
                n = add_range(call, tile, out, n, &range, most);
            }
        }
    }
    return n;
}

/* The part of a range at positions [lo, hi) */
static void clip_range(struct plong_range * r, int64_t lo, int64_t hi) {
    if (r->beg < lo) {
        r->beg += (int32_t) ((lo - r->beg + r->stride - 1) / r->stride * r->stride);
    }
    r->end = r->end < hi ? r->end : (int32_t) hi;
}

/* The keys of one of the tile's segments. */
static void key_walk_begin(
    struct key_walk * w, const struct plong_call * call, const struct plong_tile * tile, int32_t segment, int32_t cap) {
    const struct plong_slot * slot = plong_batch_slots(call->batch) + tile->group->slot;
    w->runs                        = plong_batch_runs(call->batch) + slot->run_beg;
    w->n_runs                      = slot->run_end - slot->run_beg;
    w->run                         = 0;
    w->cap                         = cap;
    w->n_ranges                    = tile_ranges(call, tile, w->range);
    w->at                          = 0;
    w->next                        = 0;
    const int64_t lo               = plong_segment_begin(tile, segment);
    for (int i = 0; i < w->n_ranges; i++) {
        clip_range(&w->range[i].range, lo, lo + tile->segment);
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

/* False when there are no more keys. Blocks of ranges of stride > 2 are half as long: their keys lie at the same place in each
 * page, so that they share few sets of the L2 cache, which is where they are fetched ahead to. */
static bool key_walk_next(struct key_walk * w, struct key_block * b) {
    b->n = 0;
    while (w->at < w->n_ranges) {
        const struct plong_range * r     = &w->range[w->at].range;
        const int64_t              count = plong_range_count(r);
        int                        room  = r->stride > 2 ? w->cap / 2 : w->cap;
        b->range                         = w->at;
        while (w->next < count && b->n < room) {
            const int32_t t = r->beg + (int32_t) w->next * r->stride;
            w->run          = key_walk_run(w, t);
            if (w->run == w->n_runs) { /* nothing cached from here on */
                w->next = count;
                break;
            }
            const struct plong_run * run = &w->runs[w->run];
            if (t < run->pos) { /* a hole: on to the first position of the range inside the run */
                int64_t skip = ((int64_t) run->pos - t + r->stride - 1) / r->stride;
                skip         = skip < count - w->next ? skip : count - w->next;
                w->next += skip;
                continue;
            }
            if (b->n == 0 && r->branch < 0) { /* blocks end at multiples of their size */
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
