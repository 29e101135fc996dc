/*
 * readers.c - finds the rows of a tile that read a range, and which of its keys. Set parts (sinks, window, ...) are
 * read by all rows. A dilated branch is only read by the rows that take part in it; these are listed, so that nothing
 * is computed for others.
 */
#include "planner.h"

static void add_set_rows(struct plong_planner * p, const struct plong_tile * tile, struct plong_tokens tokens) {
    const struct plong_phase * ph  = plong_tile_phase(p, tile);
    struct plong_row *         out = plong_extend(&p->rows, tile->n_kv * (tokens.end - tokens.beg) * tile->n_h);
    for (int32_t kv = 0; out && kv < tile->n_kv; kv++) {
        for (int32_t tok = tokens.beg; tok < tokens.end; tok++) {
            const int32_t             pos = plong_tile_pos(tile, tok), row = (kv * tile->n_tok + tok) * tile->n_h;
            const struct plong_bounds b = plong_set_bounds(ph, pos);
            for (int32_t h = 0; h < tile->n_h; h++) {
                *out++ = (struct plong_row) { row + h, pos, b.lo, b.hi, -1 };
            }
        }
    }
}

/* Index of the count that is added to the keys of a row which takes part in branches up to `top`; -1: none needed.
 * place: lattice offset of the keys that this row reads. */
static int32_t row_count(
    struct plong_planner * p, const struct plong_readers * readers, const struct plong_phase * ph, int top,
    int32_t place) {
    if (top == readers->branch) {
        return -1;
    }
    const struct plong_count   count = { top, place % plong_branch_rate(ph, top) };
    const struct plong_count * known = (const struct plong_count *) p->counts.at;
    for (int32_t i = readers->count_beg; i < p->counts.n; i++) {
        if (known[i].top == count.top && known[i].place == count.place) {
            return i - readers->count_beg;
        }
    }
    plong_append(&p->counts, &count);
    return p->counts.n - 1 - readers->count_beg;
}

/* Adds the rows of the branch's heads, which all take part in it at the same positions. No tile crosses the end of a
 * segment. */
static void add_branch_rows(
    struct plong_planner * p, const struct plong_tile * tile, const struct plong_readers * readers, int32_t offset,
    struct plong_tokens tokens) {
    const struct plong_phase * ph    = plong_tile_phase(p, tile);
    const bool                 nests = plong_phase_nests(ph), counts = plong_phase_counts(ph);
    const int                  k    = readers->branch;
    const int32_t              rate = plong_branch_rate(ph, k), step = plong_branch_step(ph, k);
    int32_t                    number[PLONG_MAX_CLASSES];
    for (int32_t h = 0; h < tile->n_h; h++) {
        number[h] = plong_shape_number(p->shape, tile->head + h);
    }
    const int32_t at    = (tile->pos + tokens.beg - plong_branch_begin(ph, k, tile->pos)) % rate;
    const int32_t first = step > 1 ? tokens.beg + (offset - at + rate) % rate : tokens.beg;
    for (int32_t tok = first; tok < tokens.end; tok += step) {
        const int32_t       pos   = tile->pos + tok;
        struct plong_bounds b     = { 0, -1 };
        bool                known = false; /* where branches do not nest, the bounds depend on the head */
        for (int32_t h = 0; h < tile->n_h; h++) {
            if (number[h] % rate != offset) {
                continue;
            }
            int32_t count = -1;
            if (!known) {
                b     = plong_branch_bounds(ph, nests, k, pos, number[h]);
                known = nests;
            }
            if (counts) {
                const int  top     = plong_branch_top(ph, k, pos, number[h]);
                const bool lattice = plong_branch_step(ph, top) > 1; /* then the row is on the one of its keys */
                count              = row_count(p, readers, ph, top, lattice ? pos : number[h]);
            }
            const struct plong_row row = { tok * tile->n_h + h, pos, b.lo, b.hi, count };
            plong_append(&p->rows, &row);
        }
    }
}

int32_t plong_plan_readers(
    struct plong_planner * p, const struct plong_tile * tile, int branch, int32_t offset, struct plong_tokens tokens) {
    const struct plong_phase * ph      = plong_tile_phase(p, tile);
    struct plong_readers       readers = {
        .row_beg   = p->rows.n,
        .count_beg = p->counts.n,
        .branch    = branch,
        .checks    = plong_branch_checks(ph, branch),
    };
    if (branch < 0) {
        add_set_rows(p, tile, tokens);
    } else {
        add_branch_rows(p, tile, &readers, offset, tokens);
    }
    readers.row_end   = p->rows.n;
    readers.count_end = p->counts.n;
    plong_append(&p->readers, &readers);
    return p->readers.n - 1;
}
