/* apart.c - the work of some rows of a tile, and its execution. */
#include "cpu/apart.h"

#include <math.h>

#include "ggml.h"

#define MOST_RANGES 2 /* of the plan: sinks and window */

/* Lays out what the sums need from `base` on, and returns its size. */
static size_t layout(
    struct apart * a, uintptr_t base, int32_t d_k, int32_t d_v, int32_t rows, int64_t pieces, bool maps) {
    const size_t work = sizeof(struct plong_work) + sizeof(struct plong_tile) + sizeof(struct plong_readers) +
                        MOST_RANGES * sizeof(struct plong_tile_range) + (size_t) rows * sizeof(struct plong_row);
    size_t       most = 0;
    uintptr_t    at   = base;
    for (int i = 0; plong_kernels[i]; i++) {
        const size_t n = plong_kernels[i]->scratch(d_k, d_v, rows, maps);
        most           = n > most ? n : most;
    }
    a->work      = take_scratch(&at, work);
    a->tile      = (struct plong_tile *) (a->work + 1);
    a->choices   = take_scratch(&at, sizeof(struct plong_choice) + (size_t) pieces * sizeof(struct plong_tile_range));
    a->state.m   = take_scratch(&at, (size_t) rows * sizeof(float));
    a->state.l   = take_scratch(&at, (size_t) rows * sizeof(float));
    a->state.acc = take_scratch(&at, (size_t) rows * (size_t) plong_pad32(d_v) * sizeof(float));
    a->scratch   = take_scratch(&at, most);
    return at - base;
}

size_t apart_scratch(const struct ggml_tensor * op, int32_t rows, int64_t pieces) {
    struct apart a;
    return layout(&a, 0, (int32_t) op->src[0]->ne[0], (int32_t) op->src[7]->ne[0], rows, pieces, op->src[5] != NULL);
}

/* Writes the work: one tile, which reads the ranges of the plan that the tile of the call has. */
static void write_work(
    struct apart * a, const struct plong_call * c, const struct plong_tile * from, struct apart_tokens tokens) {
    const struct plong_phase * ph       = plong_batch_phase(c->batch, from->phase);
    const int32_t              n_ranges = from->range_end - from->range_beg, rows = tokens.n * from->n_h;
    struct plong_work *        w    = a->work;
    struct plong_tile          tile = *from;
    GGML_ASSERT(n_ranges <= MOST_RANGES);
    *w               = (struct plong_work) { .n_tiles = 1, .n_ranges = n_ranges, .n_readers = 1, .n_rows = rows };
    w->tile_rows     = rows;
    w->shape         = c->work->shape;
    tile.tok         = 0;
    tile.pos         = plong_tile_pos(from, tokens.first);
    tile.n_tok       = tokens.n;
    tile.step        = tokens.step;
    tile.range_beg   = 0;
    tile.range_end   = n_ranges;
    tile.choice      = 0;
    tile.choice_room = 1;
    *a->tile         = tile;
    struct plong_tile_range * ranges = (struct plong_tile_range *) (a->tile + 1);
    for (int32_t i = 0; i < n_ranges; i++) {
        ranges[i]         = plong_work_ranges(c->work)[from->range_beg + i];
        ranges[i].readers = 0;
    }
    struct plong_readers * readers = (struct plong_readers *) (ranges + n_ranges);
    struct plong_row *     row     = (struct plong_row *) (readers + 1);
    *readers                       = (struct plong_readers) { .row_end = rows, .branch = -1 };
    for (int32_t i = 0; i < rows; i++) {
        const int32_t             pos = plong_tile_pos(&tile, i / tile.n_h);
        const struct plong_bounds b   = plong_set_bounds(ph, pos);
        row[i]                        = (struct plong_row) { i, pos, b.lo, b.hi, -1 };
    }
}

void apart_begin(
    struct apart * a, const struct plong_call * call, const struct plong_tile * tile, struct apart_tokens tokens,
    int64_t pieces, void * scratch) {
    layout(a, (uintptr_t) scratch, call->d_k, call->d_v, tokens.n * tile->n_h, pieces, call->table != NULL);
    write_work(a, call, tile, tokens);
    a->call = *call;
    a->call.q += (size_t) (tile->tok + tokens.first) * call->q_tok;
    a->call.q_tok *= (size_t) tokens.step;
    a->call.work    = a->work;
    a->call.choices = a->choices;
    a->begun        = false;
    for (int32_t r = 0; r < a->work->tile_rows; r++) {
        a->state.m[r] = -INFINITY;
        a->state.l[r] = 0.0f;
    }
}

void apart_add(struct apart * a, const struct plong_piece * pieces, const int32_t * which, int32_t n) {
    struct plong_tile_range * ranges = (struct plong_tile_range *) (a->choices + 1);
    const struct plong_queue  none   = { .pool = a->pool, .call = &a->call }; /* nothing comes after the tile */
    const struct plong_item   item   = { a->tile, 0, 1, true };
    *a->choices                      = (struct plong_choice) { 0, 0, 0, 0 };
    for (int32_t i = 0; i < n; i++) {
        plong_add_piece(ranges, &a->choices->n, pieces + which[i], 0);
    }
    a->tile->range_end = a->begun ? 0 : a->tile->range_end;
    a->begun           = true;
    a->kernel->run(&a->call, &none, &item, &a->state, a->scratch);
}
