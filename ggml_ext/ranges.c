/* ranges.c - the key ranges of a tile: set parts first, then branch by branch. */
#include "planner.h"

#define ALIGN 32 /* positions: a window begins at a tile of the matrix unit */

/* Appends a range that about `rows` rows of the tile read. If the backend cannot take that many at once, they are
 * divided into parts, each of which reads all keys. Ranges with the same readers follow one another. */
static void add_range(
    struct plong_planner * p, struct plong_tile * tile, const struct plong_tile_range * ranges, int n, int32_t offset,
    int32_t rows) {
    const bool    whole  = tile->choice_room > 0; /* chosen ranges have one group of readers */
    const int32_t passes = whole ? 1 : (rows + p->limits->range_rows - 1) / p->limits->range_rows;
    const int32_t tokens = (tile->n_tok + passes - 1) / passes;
    for (int32_t tok = 0; tok < tile->n_tok; tok += tokens) {
        const int32_t             end     = tok + tokens < tile->n_tok ? tok + tokens : tile->n_tok;
        const struct plong_tokens part    = { tok, end };
        const int32_t             readers = plong_plan_readers(p, tile, ranges[0].keys.branch, offset, part);
        for (int i = 0; i < n; i++) {
            struct plong_tile_range range = ranges[i];
            range.readers                 = readers;
            plong_append(&p->ranges, &range);
        }
    }
}

static void add_sets(struct plong_planner * p, struct plong_tile * tile) {
    const struct plong_phase * ph     = plong_tile_phase(p, tile);
    const struct plong_bounds  pos    = { tile->pos, plong_tile_last(tile) };
    const bool                 narrow = plong_is_narrow(p->limits, tile->n_tok, tile->n_h);
    struct plong_range         keys[2];
    struct plong_tile_range    ranges[2];
    bool                       window = false;
    const int                  n =
        narrow ? plong_set_ranges(ph, pos.lo, pos.hi, keys) : plong_set_ranges_aligned(ph, pos, ALIGN, keys, &window);
    for (int i = 0; i < n; i++) {
        ranges[i] = (struct plong_tile_range) {
            .keys      = keys[i],
            .sinks_end = window && i == n - 1 ? 0 : plong_sinks_end(ph),
        };
    }
    if (n > 0) {
        add_range(p, tile, ranges, n, 0, plong_tile_rows(tile));
    }
}

/* Appends a branch once for each offset that heads of the tile have in it. */
static void add_branch(struct plong_planner * p, struct plong_tile * tile, int k) {
    const struct plong_phase * ph   = plong_tile_phase(p, tile);
    const int32_t              rate = plong_branch_rate(ph, k), step = plong_branch_step(ph, k);
    const int32_t              rows  = (plong_tile_rows(tile) + step - 1) / step;
    int32_t                    first = -1;
    for (int32_t h = 0; h < tile->n_h; h++) {
        const int32_t           offset = plong_shape_number(p->shape, tile->head + h) % rate;
        struct plong_tile_range range  = { .log2_weight = plong_branch_log2_weight(ph, k) };
        if (offset == first) { /* from here on, offsets repeat */
            break;
        }
        if (plong_branch_range(ph, k, tile->pos, plong_tile_last(tile), offset, &range.keys)) {
            first = first < 0 ? offset : first;
            add_range(p, tile, &range, 1, offset, rows);
        }
    }
}

void plong_plan_ranges(struct plong_planner * p, struct plong_tile * tile) {
    const int branches = plong_phase_branches_at(plong_tile_phase(p, tile), plong_tile_last(tile));
    tile->range_beg    = p->ranges.n;
    add_sets(p, tile);
    for (int k = 0; k < branches; k++) {
        add_branch(p, tile, k);
    }
    tile->range_end = p->ranges.n;
}
