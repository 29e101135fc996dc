/* tiles.c - cuts a batch into query tiles, and chooses the spans in which the keys of each are summed. */
#include <stdlib.h>

#include "planner.h"

static int32_t min_i32(int32_t a, int32_t b) { return a < b ? a : b; }
static int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }

#define MOST_CHOSEN (1 << 26) /* ranges of all tiles of a batch */

#define FEW_SPANS 4 /* with more, threads share the spans of a narrow tile evenly enough */

/* The number of keys that the row at p reads, where plans have no dilated branch. */
static int64_t keys_of(const struct plong_phase * ph, int32_t p) {
    int32_t    begin;
    const bool window = plong_phase_window(ph, p, &begin);
    return window ? (int64_t) p - begin + 1 + plong_sinks_end(ph) : (int64_t) p + 1;
}

/* The length of a span in narrow tiles, which depends on the number of keys that the row at p reads. */
static int32_t narrow_span(const struct plong_limits * l, const struct plong_phase * ph, int32_t p) {
    const int64_t keys = keys_of(ph, p);
    int32_t       span = l->narrow_span, most = plong_phase_chooses(ph) ? l->narrow_spans / 4 : l->narrow_spans;
    while (keys > (int64_t) span * (most > 1 ? most : 1)) {
        span *= 2;
    }
    return span;
}

/* About how many spans a narrow tile at p reads; at least one. */
static int32_t narrow_spans(const struct plong_limits * l, const struct plong_phase * ph, int32_t p) {
    return 1 + (int32_t) (keys_of(ph, p) / narrow_span(l, ph, p));
}

/* Spans are at fixed positions, so that a row's sums do not depend on the other rows of the batch. */
static void set_spans(const struct plong_limits * l, const struct plong_phase * ph, struct plong_tile * tile) {
    int32_t begin;
    tile->span    = plong_is_narrow(l, tile->n_tok, tile->n_h) ? narrow_span(l, ph, tile->pos) : l->span;
    tile->n_spans = plong_tile_last(tile) / tile->span + 1;
    tile->gap_beg = (plong_sinks_end(ph) + tile->span - 1) / tile->span;
    tile->gap     = 0;
    if (plong_phase_window(ph, tile->pos, &begin)) {
        const int32_t first = begin / tile->span;
        tile->gap           = first > tile->gap_beg ? first - tile->gap_beg : 0;
        tile->n_spans -= tile->gap;
    }
}

/* The most ranges that a sample of up to n keys takes. Strata of one key are ranges as long as the runs of cells, and the
 * gaps that blocks leave, allow; gaps: at most. */
static int64_t sample_room(const struct plong_phase * ph, int64_t n, int64_t gaps) {
    const int64_t strata = plong_phase_sample(ph, n);
    return strata > 0 ? min_i64(strata, n - strata + 1 + gaps) : 0;
}

/* Leaves room for the ranges that the tile chooses: in the worst case one for each block, or part of a block where a run
 * of cells begins or ends, and one for each key that is chosen by its hash or in a sample. */
static void set_choice(struct plong_planner * p, const struct plong_phase * ph, struct plong_tile * tile) {
    int32_t beg, end;
    plong_phase_candidates(ph, tile->pos, &beg, &end);
    if (end > beg) {
        const struct plong_run * runs = plong_batch_runs(p->batch);
        int64_t                  most = 0, all = 0;
        for (int32_t i = tile->run_beg; i < tile->run_end; i++) {
            const int64_t from = runs[i].pos > beg ? runs[i].pos : beg, last = (int64_t) runs[i].pos + runs[i].n;
            const int64_t keys = min_i64(last, end) - from;
            most += keys > 0 ? keys / plong_phase_block(ph) + 2 : 0;
            all += keys > 0 ? keys : 0;
        }
        most                 = min_i64(most, INT32_MAX / 2);
        const bool    grows  = plong_phase_grows(p->batch, tile->phase);
        const int64_t gaps   = tile->run_end - tile->run_beg; /* all blocks are as many ranges, and their gaps */
        int64_t       blocks = grows                    ? most
                               : plong_phase_weighs(ph) ? plong_phase_budget(ph, (int32_t) most)
                                                        : plong_phase_hashed(ph, all);
        int64_t       sample = 0;
        if (plong_phase_verifies(ph)) { /* it may add any block */
            blocks = most;
            sample = plong_verify_most(all);
        } else {
            sample = sample_room(ph, all, blocks + gaps);
        }
        tile->choice      = (int32_t) p->n_chosen;
        tile->choice_room = (int32_t) min_i64(blocks + sample, INT32_MAX);
        p->n_chosen += tile->choice_room;
        p->tiles.failed |= p->n_chosen > MOST_CHOSEN;
    }
}

/* How many kv heads a narrow tile of the group has: as many as possible, since their keys are then prefetched together;
 * fewer where the plan reads so few spans that threads would have nothing to do. */
static int32_t narrow_kv(
    const struct plong_planner * p, const struct plong_group * group, const struct plong_phase * ph, int32_t n_group) {
    const int32_t n_kv  = p->shape->n_head_kv;
    const int32_t most  = min_i32(p->limits->narrow_rows / (group->n * n_group), n_kv);
    const int32_t spans = narrow_spans(p->limits, ph, group->pos);
    const int32_t parts = min_i32(p->limits->tiles / (spans * p->batch->n_groups), n_kv);
    return spans <= FEW_SPANS && parts > 1 ? min_i32(most, (n_kv + parts - 1) / parts) : most;
}

/* The end of a tile that begins at the i-th token of a group and has at most `tokens` tokens and n_h heads. A tile does
 * not cross the boundaries of plong_phase_cut(), and the rows of a narrow tile have spans of the same length. */
static int32_t tile_end(
    const struct plong_limits * l, const struct plong_group * group, const struct plong_phase * ph, int32_t i,
    int32_t tokens, int32_t n_h, int32_t step) {
    const int32_t pos = group->pos + i;
    int32_t       end = min_i32(i + tokens, group->n);
    if (step > 1) { /* every key is read, by wide tiles */
        return end;
    }
    end = plong_phase_cut(ph, pos, group->pos + end - 1) - group->pos + 1;
    while (plong_is_narrow(l, end - i, n_h) && narrow_span(l, ph, group->pos + end - 1) != narrow_span(l, ph, pos)) {
        end--;
    }
    return end;
}

/* Whether tokens of a phase have tiles that may take the place of those that choose. */
static bool has_options(const struct plong_planner * p, const struct plong_phase * ph) {
    return plong_phase_verifies(ph) && p->shape->n_head_kv > 1;
}

/* Appends the tiles of a group in a phase, of at most `rows` rows. */
static void cut_phase(struct plong_planner * p, const struct plong_group * group, int32_t phase, int32_t rows) {
    const struct plong_limits * l       = p->limits;
    const struct plong_shape *  shape   = p->shape;
    const struct plong_phase *  ph      = plong_batch_phase(p->batch, phase);
    const struct plong_slot *   slot    = plong_batch_slots(p->batch) + group->slot;
    const bool                  dilated = plong_phase_branches(ph) > 0;
    const int32_t               step    = p->batch->step > 1 ? p->batch->step : 1;
    const int32_t               n_group = shape->n_head / shape->n_head_kv;
    const bool                  chooses = plong_phase_chooses(ph); /* then each kv head reads other keys */
    const bool                  narrow  = !dilated && !chooses && plong_is_narrow(l, group->n, n_group);
    const int32_t               most_kv = narrow ? narrow_kv(p, group, ph, n_group) : 1;
    const int32_t block_h = chooses && l->max_rows > plong_phase_rows(ph) ? l->max_rows / plong_phase_rows(ph) : 1;
    const int32_t most_h  = min_i32(n_group, dilated ? l->classes : chooses ? block_h : n_group);
    rows *= dilated ? l->dilated_rows : 1;
    rows = chooses ? plong_phase_rows(ph) * most_h : rows; /* a query block is one tile */
    for (int32_t kv = 0; kv < shape->n_head_kv; kv += most_kv) {
        for (int32_t h = 0; h < n_group; h += most_h) {
            const int32_t n_h    = min_i32(most_h, n_group - h);
            const int32_t fit    = rows / n_h > 1 ? rows / n_h : 1;
            const int32_t cuts   = (group->n + fit - 1) / fit;
            const int32_t tokens = chooses ? fit : (group->n + cuts - 1) / cuts;
            for (int32_t i = 0, end; i < group->n; i = end) {
                end                    = tile_end(l, group, ph, i, tokens, n_h, step);
                struct plong_tile tile = {
                    .stream  = slot->stream,
                    .run_beg = slot->run_beg,
                    .run_end = slot->run_end,
                    .phase   = phase,
                    .tok     = group->tok + i,
                    .pos     = group->pos + i * step,
                    .n_tok   = end - i,
                    .step    = step,
                    .head    = kv * n_group + h,
                    .n_h     = n_h,
                    .n_kv    = min_i32(most_kv, shape->n_head_kv - kv),
                    .option  = has_options(p, ph) ? PLONG_OPTION_CHOICE : PLONG_OPTION_NONE,
                };
                set_spans(l, ph, &tile);
                set_choice(p, ph, &tile);
                plong_append(&p->tiles, &tile);
            }
        }
    }
}

/* The same in its own phase. Tokens that read every key, where others of the phase choose theirs, are in tiles of all kv
 * heads, as if they were in an exact plan. */
static void cut_group(struct plong_planner * p, const struct plong_group * group, int32_t rows) {
    const struct plong_phase * ph    = plong_batch_phase(p->batch, group->phase);
    struct plong_group         dense = *group, rest = *group;
    if (p->shape->dense || p->batch->step > 1 || !plong_phase_chooses(ph)) {
        cut_phase(p, group, p->shape->dense ? PLONG_PHASE_EXACT : group->phase, rows);
        return;
    }
    const int32_t n = plong_phase_dense_end(ph) > group->pos ? plong_phase_dense_end(ph) - group->pos : 0;
    dense.n         = min_i32(n, group->n);
    rest.n          = group->n - dense.n;
    rest.tok += dense.n;
    rest.pos += dense.n;
    if (dense.n > 0) {
        cut_phase(p, &dense, PLONG_PHASE_EXACT, rows);
    }
    if (rest.n > 0) {
        cut_phase(p, &rest, group->phase, rows);
    }
    const int32_t      first = p->tiles.n;
    struct plong_group one   = rest;
    one.n                    = 1;
    for (; has_options(p, ph) && one.tok < rest.tok + rest.n; one.tok++, one.pos++) {
        cut_phase(p, &one, PLONG_PHASE_EXACT, rows);
    }
    for (int32_t i = first; i < p->tiles.n; i++) {
        ((struct plong_tile *) p->tiles.at)[i].option = PLONG_OPTION_WHOLE;
    }
}

/* ---- order ---------------------------------------------------------------------------------------------------- */

struct costed {
    struct plong_tile tile;
    int64_t           cost; /* about as many (row, key) pairs */
};

static int64_t tile_cost(const struct plong_planner * p, const struct plong_tile * tile) {
    int64_t keys = 0;
    for (int32_t h = tile->head; h < tile->head + tile->n_h; h++) {
        keys += plong_phase_cost(plong_tile_phase(p, tile), plong_tile_last(tile), plong_shape_number(p->shape, h));
    }
    return keys * tile->n_kv * tile->n_tok;
}

static int by_cost(const void * a, const void * b) {
    const int64_t x = ((const struct costed *) a)->cost, y = ((const struct costed *) b)->cost;
    return (x < y) - (x > y);
}

/* A decoded token takes part in a coarse branch only in some kv heads, which then read several times as many keys. The
 * longest tiles go first, so that all threads finish at about the same time. */
static void sort_tiles(struct plong_planner * p) {
    struct plong_tile * tiles  = (struct plong_tile *) p->tiles.at;
    bool                uneven = false;
    for (int32_t i = 0; i < p->tiles.n; i++) {
        uneven |= plong_phase_branches(plong_tile_phase(p, &tiles[i])) > 0 &&
                  plong_is_narrow(p->limits, tiles[i].n_tok, tiles[i].n_h);
    }
    struct costed * order = uneven ? malloc((size_t) p->tiles.n * sizeof(*order)) : NULL;
    if (!order) { /* without memory they keep their order, which is also correct */
        return;
    }
    for (int32_t i = 0; i < p->tiles.n; i++) {
        order[i] = (struct costed) { tiles[i], tile_cost(p, &tiles[i]) };
    }
    qsort(order, (size_t) p->tiles.n, sizeof(*order), by_cost);
    for (int32_t i = 0; i < p->tiles.n; i++) {
        tiles[i] = order[i].tile;
    }
    free(order);
}

/* ---- the batch ------------------------------------------------------------------------------------------------ */

static int32_t tiles_wanted(const struct plong_planner * p) {
    const struct plong_group * groups  = plong_batch_groups(p->batch);
    bool                       dilated = false;
    for (int32_t g = 0; g < p->batch->n_groups && !p->shape->dense; g++) {
        dilated |= plong_phase_branches(plong_batch_phase(p->batch, groups[g].phase)) > 0;
    }
    return dilated ? p->limits->dilated_tiles : p->limits->tiles;
}

void plong_plan_tiles(struct plong_planner * p) {
    const struct plong_limits * l      = p->limits;
    const struct plong_group *  groups = plong_batch_groups(p->batch);
    const int32_t               wanted = tiles_wanted(p);
    for (int32_t rows = l->max_rows;; rows = rows / 2 > l->min_rows ? rows / 2 : l->min_rows) {
        p->tiles.n  = 0;
        p->n_chosen = 0;
        for (int32_t g = 0; g < p->batch->n_groups; g++) {
            cut_group(p, &groups[g], rows);
        }
        if (rows <= l->min_rows || p->tiles.n >= wanted) {
            break;
        }
    }
    if (wanted > 0) {
        sort_tiles(p);
    }
    struct plong_tile * tiles = (struct plong_tile *) p->tiles.at;
    int64_t             parts = 0;
    for (int32_t i = 0; i < p->tiles.n; i++) {
        /* this many are never computed span by span */
        tiles[i].part = (int32_t) (parts < INT32_MAX ? parts : INT32_MAX);
        parts += tiles[i].n_spans;
    }
}
