/* queue.c - the items of a call, and which of them a thread gets next. */
#include "cpu/queue.h"

#include "ggml-cpu-impl.h"

#define TILES_PER_THREAD 4 /* with fewer tiles, their spans are items */

int64_t plong_tiles_wanted(int n_threads) { return TILES_PER_THREAD * (int64_t) n_threads; }

struct plong_queue plong_queue_of(
    const struct plong_call * call, struct ggml_threadpool * pool, int n_threads, int64_t max_rows) {
    const struct plong_work * w     = call->work;
    int64_t                   tiles = w->n_tiles;
    for (int32_t i = 0; i < w->n_tiles && w->n_options > 0; i++) {
        tiles -= plong_tile_idle(call, plong_work_tiles(w) + i);
    }
    const bool shared = n_threads > 1 && tiles < plong_tiles_wanted(n_threads) && w->n_parts < INT32_MAX &&
                        (int64_t) w->n_parts * w->tile_rows <= max_rows;
    return (struct plong_queue) { pool, call, shared, shared ? w->n_parts : w->n_tiles };
}

static bool get_item(const struct plong_queue * q, int64_t i, struct plong_item * item) {
    const struct plong_tile * tiles = plong_work_tiles(q->call->work);
    if (i >= q->n_items) {
        return false;
    }
    if (!q->shared) {
        const struct plong_tile * tile = tiles + i;
        /* as items, each span would go through all branches again */
        const bool whole = plong_phase_branches(plong_batch_phase(q->call->batch, tile->phase)) > 0;
        *item            = (struct plong_item) { tile, 0, whole ? 1 : tile->n_spans, whole };
        return true;
    }
    int32_t at = 0;
    while (at + 1 < q->call->work->n_tiles && tiles[at + 1].part <= i) {
        at++;
    }
    const int32_t span = (int32_t) i - tiles[at].part;
    *item              = (struct plong_item) { tiles + at, span, span + 1, false };
    return true;
}

int64_t plong_queue_take(const struct plong_queue * q, struct plong_item * item) {
    const int64_t i = ggml_threadpool_chunk_add(q->pool, 1);
    return get_item(q, i, item) ? i : -1;
}

bool plong_queue_peek(const struct plong_queue * q, struct plong_item * item) {
    return get_item(q, ggml_threadpool_chunk_add(q->pool, 0), item);
}
