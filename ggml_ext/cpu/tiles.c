/* tiles.c - cuts a batch into tiles, and these into segments of keys where there are too few for the threads. */
#include "cpu/tiles.h"

#include <stdlib.h>
#include <string.h>

#include "ggml-cpu-impl.h"

#define TILES_PER_THREAD 8         /* wanted, for balance: tiles get smaller, then keys are split */
#define NARROW_SEGMENT   512       /* fewest keys that are merged as a whole in narrow tiles */
#define WHOLE            (1 << 30) /* longer than any sequence */

int32_t plong_min_rows(int32_t d_k, int32_t d_v) {
    const int32_t n = plong_row_limit(d_k, d_v) / 4;
    return n > PLONG_NARROW_ROWS ? n : PLONG_NARROW_ROWS;
}

int64_t plong_tiles_wanted(int n_threads) { return TILES_PER_THREAD / 2 * (int64_t) n_threads; }

static int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }

static const struct plong_phase exact_phase = { .window = PLONG_ALL };

static bool row_has_window(const struct plong_phase * ph, int32_t p) {
    return ph->n_branches == 0 && p >= ph->dense_below && p >= ph->window;
}

/* Keys of a segment in narrow tiles: by the number of keys that the row at p reads. */
static int32_t narrow_segment(const struct plong_phase * ph, int32_t p) {
    const int64_t keys = row_has_window(ph, p) ? (int64_t) ph->window + plong_sinks_end(ph) : (int64_t) p + 1;
    int32_t       n    = NARROW_SEGMENT;
    while (keys > (int64_t) n * PLONG_NARROW_SEGMENTS) {
        n *= 2;
    }
    return n;
}

/* Segments lie at fixed positions, so that a row's sums are the same in any company. */
static void set_segments(struct plong_tile * tile) {
    const struct plong_phase * ph = tile->phase;
    tile->segment = plong_is_narrow(tile->n_tok, tile->n_h) ? narrow_segment(ph, tile->pos) : PLONG_SEGMENT;
    tile->seg0    = 0;
    tile->seg1    = (tile->pos + tile->n_tok - 1) / tile->segment + 1;
    tile->gap_at  = (plong_sinks_end(ph) + tile->segment - 1) / tile->segment;
    tile->gap     = 0;
    if (row_has_window(ph, tile->pos)) {
        const int32_t first = (tile->pos - ph->window + 1) / tile->segment;
        tile->gap           = first > tile->gap_at ? first - tile->gap_at : 0;
        tile->seg1 -= tile->gap;
    }
}

/* Cuts one group into tiles of at most `rows` rows. */
static int64_t group_tiles(
    const struct plong_call * c, const struct plong_group * group, const struct plong_phase * phase, int32_t rows,
    struct plong_tile * tiles) {
    const int32_t n_kv    = c->n_head / c->n_group;
    const bool    dilated = phase->n_branches > 0;
    const bool    narrow  = !dilated && plong_is_narrow(group->n, c->n_group);
    const int32_t most_kv = narrow ? PLONG_NARROW_ROWS / (group->n * c->n_group) : 1;
    const int32_t most_h  = dilated && c->n_group > PLONG_CLASSES ? PLONG_CLASSES : c->n_group;
    int64_t       n       = 0;
    for (int32_t kv = 0, kvs; kv < n_kv; kv += kvs) {
        kvs = kv + most_kv < n_kv ? most_kv : n_kv - kv;
        for (int32_t h = 0, hs; h < c->n_group; h += hs) {
            hs                   = h + most_h < c->n_group ? most_h : c->n_group - h;
            const int32_t fit    = rows / hs > 1 ? rows / hs : 1;
            const int32_t cuts   = (group->n + fit - 1) / fit;
            const int32_t tokens = (group->n + cuts - 1) / cuts;
            for (int32_t i = 0; i < group->n;) {
                const int32_t pos = group->pos + i;
                int32_t       end = i + tokens < group->n ? i + tokens : group->n;
                end               = plong_phase_cut(phase, pos, group->pos + end - 1) - group->pos + 1;
                while (plong_is_narrow(end - i, hs) &&
                       narrow_segment(phase, group->pos + end - 1) != narrow_segment(phase, pos)) {
                    end--;
                }
                tiles[n] = (struct plong_tile) {
                    .group = group,
                    .phase = phase,
                    .tok   = group->tok + i,
                    .pos   = pos,
                    .n_tok = end - i,
                    .head0 = kv * c->n_group + h,
                    .n_h   = hs,
                    .n_kv  = kvs,
                };
                set_segments(&tiles[n++]);
                i = end;
            }
        }
    }
    return n;
}

/* For tile.cost. */
static int64_t tile_cost(const struct plong_call * c, const struct plong_tile * tile) {
    int64_t keys = 0;
    for (int32_t h = tile->head0; h < tile->head0 + tile->n_h; h++) {
        keys += plong_phase_cost(tile->phase, tile->pos + tile->n_tok - 1, plong_call_number(c, h));
    }
    return keys * tile->n_kv * tile->n_tok;
}

static int by_cost(const void * a, const void * b) {
    const int64_t x = ((const struct plong_tile *) a)->cost, y = ((const struct plong_tile *) b)->cost;
    return (x < y) - (x > y);
}

/* A decoded token takes part in a coarse branch in some kv heads only, and these have several times the keys. The longest
 * first, so that the threads end together. */
static void sort_tiles(const struct plong_call * c, struct plong_tile * tiles, int64_t n) {
    bool uneven = false;
    for (int64_t i = 0; i < n; i++) {
        uneven |= tiles[i].phase->n_branches > 0 && plong_is_narrow(tiles[i].n_tok, tiles[i].n_h);
    }
    if (uneven) {
        for (int64_t i = 0; i < n; i++) {
            tiles[i].cost = tile_cost(c, &tiles[i]);
        }
        qsort(tiles, (size_t) n, sizeof(*tiles), by_cost);
    }
}

int64_t plong_make_tiles(const struct plong_call * c, int n_threads, struct plong_tile * tiles) {
    const struct plong_group * groups = plong_batch_groups(c->batch);
    const bool                 dense  = c->params.layer < c->batch->plan.dense_layers;
    const int32_t              least  = plong_min_rows(c->d_k, c->d_v);
    for (int32_t rows = plong_row_limit(c->d_k, c->d_v);; rows = rows / 2 > least ? rows / 2 : least) {
        int64_t n = 0, wanted = (int64_t) TILES_PER_THREAD * n_threads;
        for (int g = 0; g < c->batch->n_groups; g++) {
            const struct plong_phase * phase = dense ? &exact_phase : &c->batch->plan.phase[groups[g].phase];
            /* only one row in `rate` uses the keys that a branch has packed: more of them in a tile, fewer tiles */
            const bool dilated = phase->n_branches > 0;
            n += group_tiles(c, &groups[g], phase, dilated ? PLONG_DILATED_ROWS * rows : rows, tiles + n);
            wanted = dilated ? TILES_PER_THREAD / 4 * (int64_t) n_threads : wanted;
        }
        if (rows <= least || n_threads == 1 || n >= wanted) {
            sort_tiles(c, tiles, n_threads > 1 ? n : 0);
            return n;
        }
    }
}

int64_t plong_share_segments(struct plong_tile * tiles, int64_t n, int n_threads, int32_t rows, int64_t max_rows) {
    int64_t parts = 0;
    for (int64_t i = 0; i < n; i++) {
        tiles[i].part = parts;
        parts += tiles[i].seg1;
    }
    if (n_threads > 1 && n < plong_tiles_wanted(n_threads) && parts * rows <= max_rows) {
        return parts;
    }
    for (int64_t i = 0; i < n; i++) { /* each segment would go through all branches anew */
        if (tiles[i].phase->n_branches > 0) {
            tiles[i].segment = WHOLE;
            tiles[i].seg1    = 1;
        }
    }
    return n;
}

bool plong_queue_item(const struct plong_queue * q, int64_t item, struct plong_tile * tile) {
    if (item >= q->n_items) {
        return false;
    }
    if (q->n_items == q->n_tiles) {
        *tile = q->tiles[item];
        return true;
    }
    int64_t i = 0;
    while (i + 1 < q->n_tiles && q->tiles[i + 1].part <= item) {
        i++;
    }
    *tile      = q->tiles[i];
    tile->seg0 = (int32_t) (item - tile->part);
    tile->seg1 = tile->seg0 + 1;
    return true;
}

bool plong_queue_peek(const struct plong_queue * q, struct plong_tile * tile) {
    return plong_queue_item(q, ggml_threadpool_chunk_add(q->pool, 0), tile);
}
