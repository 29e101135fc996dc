/* trial.c - the error that a choice of keys has at the checks of a tile. */
#include "cpu/trial.h"

#include <math.h>

#define MOST_RANGES 2 /* of the plan: sinks and window */

/* Lays out what a trial needs from `base` on, and returns its size. */
static size_t layout(
    struct trial * t, uintptr_t base, int32_t d_k, int32_t d_v, int32_t heads, int64_t pieces, bool maps) {
    const int32_t rows = heads * PLONG_TILE_CHECKS;
    const size_t  work = sizeof(struct plong_work) + sizeof(struct plong_tile) + sizeof(struct plong_readers) +
                         MOST_RANGES * sizeof(struct plong_tile_range) + (size_t) rows * sizeof(struct plong_row);
    size_t        most = 0;
    uintptr_t     at   = base;
    for (int i = 0; plong_kernels[i]; i++) {
        const size_t n = plong_kernels[i]->scratch(d_k, d_v, rows, maps);
        most           = n > most ? n : most;
    }
    t->work      = take_scratch(&at, work);
    t->own_tile  = (struct plong_tile *) (t->work + 1);
    t->choices   = take_scratch(&at, sizeof(struct plong_choice) + (size_t) pieces * sizeof(struct plong_tile_range));
    t->state.m   = take_scratch(&at, (size_t) rows * sizeof(float));
    t->state.l   = take_scratch(&at, (size_t) rows * sizeof(float));
    t->state.acc = take_scratch(&at, (size_t) rows * (size_t) plong_pad32(d_v) * sizeof(float));
    t->scratch   = take_scratch(&at, most);
    return at - base;
}

size_t trial_scratch(const struct ggml_tensor * op, int32_t heads, int64_t pieces) {
    struct trial t;
    const bool   tries = op->src[8] != NULL;
    return tries
               ? layout(
                     &t, 0, (int32_t) op->src[0]->ne[0], (int32_t) op->src[7]->ne[0], heads, pieces, op->src[5] != NULL)
               : 0;
}

/* Writes the work: one tile of the checks, which reads the ranges of the plan that its query block has. */
static void write_work(struct trial * t, int32_t token) {
    const struct plong_call *  c    = t->call;
    const struct plong_phase * ph   = plong_batch_phase(c->batch, t->tile->phase);
    const int32_t              step = c->batch->plan.check, n_ranges = t->tile->range_end - t->tile->range_beg;
    struct plong_work *        w    = t->work;
    struct plong_tile          tile = *t->tile;
    const int32_t              rows = t->n_checks * tile.n_h;
    GGML_ASSERT(n_ranges <= MOST_RANGES);
    *w               = (struct plong_work) { .n_tiles = 1, .n_ranges = n_ranges, .n_readers = 1, .n_rows = rows };
    w->tile_rows     = rows;
    w->shape         = c->work->shape;
    tile.tok         = 0;
    tile.pos         = plong_tile_pos(t->tile, token);
    tile.n_tok       = t->n_checks;
    tile.step        = step;
    tile.range_beg   = 0;
    tile.range_end   = n_ranges;
    tile.choice      = 0;
    tile.choice_room = 1;
    *t->own_tile     = tile;
    struct plong_tile_range * ranges = (struct plong_tile_range *) (t->own_tile + 1);
    for (int32_t i = 0; i < n_ranges; i++) {
        ranges[i]         = plong_work_ranges(c->work)[t->tile->range_beg + i];
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

bool trial_begin(
    struct trial * t, const struct plong_call * call, struct ggml_threadpool * pool, const struct plong_tile * tile,
    int64_t pieces, void * scratch) {
    int32_t token;
    *t = (struct trial) { .call = call, .tile = tile, .pool = pool };
    if (!call->exact || !plong_phase_grows(call->batch, tile->phase)) {
        return false;
    }
    t->n_checks = plong_tile_checks(call, tile, &t->first, &token);
    if (t->n_checks == 0) {
        return false;
    }
    t->kernel = plong_kernel_at(call->batch->precision);
    layout(t, (uintptr_t) scratch, call->d_k, call->d_v, tile->n_h, pieces, call->table != NULL);
    write_work(t, token);
    t->own = *call;
    t->own.q += (size_t) (tile->tok + token) * call->q_tok;
    t->own.q_tok *= (size_t) call->batch->plan.check;
    t->own.work    = t->work;
    t->own.choices = t->choices;
    for (int32_t r = 0; r < t->work->tile_rows; r++) {
        t->state.m[r] = -INFINITY;
        t->state.l[r] = 0.0f;
    }
    return true;
}

/* The squares of exact - sparse and of exact, of one row. */
static void add_row(const struct trial * t, int32_t row, double * error, double * norm) {
    const int32_t d = t->own.d_v, n_h = t->tile->n_h, head = t->tile->head + row % n_h;
    const float * exact =
        t->call->exact + ((size_t) (t->first + row / n_h) * (size_t) t->own.n_head + (size_t) head) * (size_t) d;
    const float * acc   = t->state.acc + (size_t) row * (size_t) plong_pad32(d);
    const float   sum   = t->state.l[row] + plong_sink_weight(&t->own, head, t->state.m[row]);
    const float   scale = sum > 0.0f ? 1.0f / sum : 0.0f;
    float         apart = 0.0f, length = 0.0f;
    for (int32_t i = 0; i < d; i++) {
        const float x = exact[i] - acc[i] * scale;
        apart += x * x;
        length += exact[i] * exact[i];
    }
    *error += (double) apart;
    *norm += (double) length;
}

float trial_add(void * self, const struct plong_piece * pieces, const int32_t * which, int32_t n) {
    struct trial *            t      = self;
    struct plong_tile *       tile   = t->own_tile;
    struct plong_tile_range * ranges = (struct plong_tile_range *) (t->choices + 1);
    const struct plong_queue  none   = { .pool = t->pool, .call = &t->own }; /* nothing comes after the tile */
    const struct plong_item   item   = { tile, 0, 1, true };
    float                     worst  = 0.0f;
    *t->choices                      = (struct plong_choice) { 0, 0, 0 };
    for (int32_t i = 0; i < n; i++) {
        plong_add_piece(ranges, &t->choices->n, pieces + which[i], 0);
    }
    tile->range_end = t->begun ? 0 : tile->range_end;
    t->begun        = true;
    t->kernel->run(&t->own, &none, &item, &t->state, t->scratch);
    for (int32_t check = 0; check < t->n_checks; check++) {
        double error = 0, norm = 0;
        for (int32_t h = 0; h < tile->n_h; h++) {
            add_row(t, check * tile->n_h + h, &error, &norm);
        }
        const float found = norm > 0 ? (float) sqrt(error / norm) : 0.0f;
        worst             = found > worst ? found : worst; /* one that is no number asks for no more keys */
    }
    return worst;
}
