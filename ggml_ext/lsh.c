/* lsh.c - hashes of keys and queries, and the choice of keys by them. */
#include "lsh.h"

#include <stdlib.h>
#include <string.h>

#include "position_map.h"
#include "rotate.h"
#include "sample.h"

#define BITS     16
#define MOST_D   1024
#define FEW_BITS 4 /* of the ranks that the fewest keys are sorted by */

static int32_t min_i32(int32_t a, int32_t b) { return a < b ? a : b; }
static int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- hashes --------------------------------------------------------------------------------------------------- */

/* Random vectors [d][BITS], the same everywhere. The sum of four uniform numbers is nearly normal, so that no direction is
 * preferred. */
static void random_vectors(int32_t d, float * out) {
    for (int32_t i = 0; i < d * BITS; i++) {
        const uint64_t x = plong_mix((uint64_t) i);
        const int32_t  s = (int32_t) ((x & 65535) + (x >> 16 & 65535) + (x >> 32 & 65535) + (x >> 48));
        out[i]           = (float) (s - 2 * 65535);
    }
}

static uint16_t rank_of(const float * x, int32_t d, const float * vectors) {
    float    sums[BITS] = { 0 };
    uint32_t rank = 0, last = 0;
    for (int32_t i = 0; i < d; i++) {
        for (int32_t j = 0; j < BITS; j++) {
            sums[j] += x[i] * vectors[i * BITS + j];
        }
    }
    for (int32_t j = 0; j < BITS; j++) { /* from a Gray code to the number that it stands for */
        last ^= sums[j] > 0.0f;
        rank = rank << 1 | last;
    }
    return (uint16_t) rank;
}

void plong_lsh_ranks(const float * rows, int32_t n, int32_t d, uint16_t * ranks) {
    float vectors[MOST_D * BITS];
    random_vectors(d, vectors);
    for (int32_t i = 0; i < n; i++) {
        ranks[i] = rank_of(rows + (size_t) i * d, d, vectors);
    }
}

/* ---- scratch -------------------------------------------------------------------------------------------------- */

struct lsh_mem {
    float *              rows;   /* [query rows][d_k] */
    uint16_t *           hashes; /* [query rows] */
    int64_t *            places; /* [query rows], ascending */
    int32_t *            begins; /* [ranks + 1] of the keys with each rank in their order */
    uint8_t *            taken;  /* [keys in their order] */
    struct plong_piece * pieces; /* cut where keys are taken and others are not */
    int32_t *            order;  /* which of them are taken */
};

static void * take(uintptr_t * at, size_t size) {
    void * part = (void *) *at;
    *at += (size + 63) & ~(size_t) 63;
    return part;
}

static size_t layout(struct lsh_mem * m, uintptr_t base, int32_t d_k, int64_t n_cells, int64_t n_runs, int32_t heads) {
    const size_t rows = (size_t) PLONG_PAGE * (size_t) heads, pieces = (size_t) (n_cells + 2 * n_runs + 1);
    uintptr_t    at = base;
    m->rows         = take(&at, rows * (size_t) d_k * sizeof(float));
    m->hashes       = take(&at, rows * sizeof(uint16_t));
    m->places       = take(&at, rows * sizeof(int64_t));
    m->begins       = take(&at, ((size_t) (1 << BITS) + 1) * sizeof(int32_t));
    m->taken        = take(&at, (size_t) n_cells);
    m->pieces       = take(&at, pieces * sizeof(struct plong_piece));
    m->order        = take(&at, pieces * sizeof(int32_t));
    return at - base;
}

size_t plong_lsh_scratch(int32_t d_k, int64_t n_cells, int64_t n_runs, int32_t heads) {
    struct lsh_mem m;
    return layout(&m, 0, d_k, n_cells, n_runs, heads);
}

/* ---- queries -------------------------------------------------------------------------------------------------- */

/* The rows of a tile as they multiply the keys of a zone, but for their scale, and their hashes. */
static int32_t hash_rows(
    const struct plong_call * c, const struct plong_tile * tile, int32_t map, int zone, struct lsh_mem * m) {
    const struct plong_rope * rope = &c->batch->rope;
    float                     angles[PLONG_MAX_ROT];
    int32_t                   n = 0;
    for (int32_t i = 0; i < tile->n_tok; i++) {
        const int32_t p     = plong_tile_pos(tile, i);
        const int64_t shift = plong_map_query(rope, map, zone, p) - plong_map_stored(rope, map, p);
        if (shift) {
            plong_rope_angles(c->table, c->params.n_rot, &shift, 1, angles);
        }
        for (int32_t h = 0; h < tile->n_h; h++) {
            float * x = m->rows + (size_t) n++ * c->d_k;
            memcpy(
                x, c->q + (size_t) (tile->tok + i) * c->q_tok + (size_t) (tile->head + h) * c->q_head,
                (size_t) c->d_k * sizeof(float));
            if (shift) {
                row_rotate(x + c->params.rot_first, angles, c->params.n_rot, c->params.neox);
            }
            if (c->params.hadamard) {
                row_hadamard(x, c->d_k, c->params.hadamard);
            }
        }
    }
    plong_lsh_ranks(m->rows, n, c->d_k, m->hashes);
    return n;
}

/* The zone of a piece for all rows of the tile: never that in which keys are rotated before they are used. */
static int zone_of(const struct plong_call * c, const struct plong_tile * tile, int32_t map, int32_t pos) {
    const int zone = plong_map_zone(&c->batch->rope, map, tile->pos, pos);
    return plong_map_unfolds(map, zone) ? zone + 1 : zone;
}

/* ---- the order of keys ---------------------------------------------------------------------------------------- */

/* Pieces [n] of one zone, and the order of their keys. */
struct sorted {
    const struct plong_piece * pieces;
    int32_t                    n;
    const uint16_t *           ranks; /* of all cells */
    int64_t                    n_keys;
    int                        shift; /* of the ranks: as many keys have as many ranks, about */
};

static void sort_keys(struct sorted * s, int32_t * begins) {
    int bits = FEW_BITS;
    while (bits < BITS && (int64_t) 1 << bits < s->n_keys) {
        bits++;
    }
    s->shift = BITS - bits;
    memset(begins, 0, ((size_t) (1 << bits) + 1) * sizeof(*begins));
    for (int32_t i = 0; i < s->n; i++) {
        for (int32_t j = 0; j < s->pieces[i].n; j++) {
            begins[(s->ranks[s->pieces[i].cell + j] >> s->shift) + 1]++;
        }
    }
    for (int32_t i = 0; i < 1 << bits; i++) {
        begins[i + 1] += begins[i];
    }
}

static int by_place(const void * a, const void * b) {
    const int64_t x = *(const int64_t *) a, y = *(const int64_t *) b;
    return (x > y) - (x < y);
}

/* The places of rows among the keys, each once. Returns their number. */
static int32_t find_places(const struct sorted * s, struct lsh_mem * m, int32_t rows) {
    int32_t n = 0;
    for (int32_t i = 0; i < rows; i++) {
        const int32_t rank = m->hashes[i] >> s->shift;
        m->places[i]       = ((int64_t) m->begins[rank] + m->begins[rank + 1]) / 2;
    }
    qsort(m->places, (size_t) rows, sizeof(*m->places), by_place);
    for (int32_t i = 0; i < rows; i++) {
        if (n == 0 || m->places[n - 1] != m->places[i]) {
            m->places[n++] = m->places[i];
        }
    }
    return n;
}

/* The keys [beg, end) in their order that a place asks for, when each may have `width`; as many at the ends of the order as
 * elsewhere. */
static void around(int64_t place, int64_t width, int64_t n_keys, int64_t * beg, int64_t * end) {
    *beg = place - width / 2;
    *beg = *beg > n_keys - width ? n_keys - width : *beg;
    *beg = *beg > 0 ? *beg : 0;
    *end = min_i64(*beg + width, n_keys);
}

/* How many keys all places together ask for. */
static int64_t asked_keys(const int64_t * places, int32_t n, int64_t width, int64_t n_keys) {
    int64_t total = 0, last = 0;
    for (int32_t i = 0; i < n; i++) {
        int64_t beg, end;
        around(places[i], width, n_keys, &beg, &end);
        beg = beg > last ? beg : last;
        total += end > beg ? end - beg : 0;
        last = end > last ? end : last;
    }
    return total;
}

/* Marks at most `budget` keys: the widest blocks around all places, or a key each around some of them. */
static void take_keys(const int64_t * places, int32_t n, int64_t n_keys, int64_t budget, uint8_t * taken) {
    int64_t       width = 1, most = min_i64(budget, n_keys);
    const int32_t few = n > most ? (int32_t) most : n;
    while (width < most && few == n) {
        const int64_t mid = width + (most - width + 1) / 2;
        if (asked_keys(places, n, mid, n_keys) <= budget) {
            width = mid;
        } else {
            most = mid - 1;
        }
    }
    memset(taken, 0, (size_t) n_keys);
    for (int32_t i = 0; i < few; i++) {
        int64_t beg, end;
        around(places[(int64_t) i * n / few], width, n_keys, &beg, &end);
        memset(taken + beg, 1, (size_t) (end - beg));
    }
}

/* ---- choice --------------------------------------------------------------------------------------------------- */

/* The pieces that are made. */
struct cut {
    struct lsh_mem * m;
    int32_t          n, taken;
    bool             last; /* whether the last is taken */
};

static void add_key(struct cut * cut, int32_t pos, int32_t cell, bool taken) {
    struct plong_piece * last = cut->m->pieces + cut->n - 1;
    if (cut->n > 0 && cut->last == taken && last->pos + last->n == pos && last->cell + last->n == cell) {
        last->n++;
        return;
    }
    if (taken) {
        cut->m->order[cut->taken++] = cut->n;
    }
    cut->m->pieces[cut->n++] = (struct plong_piece) { pos, cell, 1 };
    cut->last                = taken;
}

/* Cuts the pieces of a zone, in which `budget` keys are taken. */
static void choose_zone(
    const struct plong_call * c, const struct plong_tile * tile, struct sorted * s, int zone, int64_t budget,
    struct cut * cut) {
    const int32_t    map    = c->params.n_rot > 0 ? c->batch->rope.map : PLONG_MAP_ABSOLUTE;
    struct lsh_mem * m      = cut->m;
    const bool       sorted = budget > 0 && budget < s->n_keys;
    if (sorted) {
        const int32_t rows = hash_rows(c, tile, map, zone, m);
        sort_keys(s, m->begins);
        take_keys(m->places, find_places(s, m, rows), s->n_keys, budget, m->taken);
    }
    for (int32_t i = 0; i < s->n; i++) {
        const struct plong_piece * piece = s->pieces + i;
        for (int32_t j = 0; j < piece->n; j++) {
            const int32_t cell = piece->cell + j;
            add_key(cut, piece->pos + j, cell, sorted ? m->taken[m->begins[s->ranks[cell] >> s->shift]++] : budget > 0);
        }
    }
}

void plong_choose_hashed(
    const struct plong_call * c, int32_t tile, const struct plong_piece * pieces, int32_t n, void * scratch) {
    const struct plong_tile *  t    = plong_work_tiles(c->work) + tile;
    const struct plong_phase * ph   = plong_batch_phase(c->batch, t->phase);
    const int32_t              map  = c->params.n_rot > 0 ? c->batch->rope.map : PLONG_MAP_ABSOLUTE;
    const uint16_t * const     rank = plong_index_of(c, t->stream, t->head / c->n_group).ranks;
    struct lsh_mem             m;
    struct cut                 cut  = { .m = &m };
    int64_t                    keys = 0, before = 0;
    layout(&m, (uintptr_t) scratch, c->d_k, c->n_cells, c->batch->n_runs, c->n_group);
    for (int32_t i = 0; i < n; i++) {
        keys += pieces[i].n;
    }
    const int64_t budget = min_i32(plong_phase_hashed(ph, keys), t->choice_room);
    for (int32_t beg = 0, end; beg < n; beg = end) {
        const int     zone = zone_of(c, t, map, pieces[beg].pos);
        struct sorted s    = { .pieces = pieces + beg, .ranks = rank };
        for (end = beg; end < n && zone_of(c, t, map, pieces[end].pos) == zone; end++) {
            s.n_keys += pieces[end].n;
        }
        s.n                = end - beg;
        const int64_t mine = budget * (before + s.n_keys) / keys - budget * before / keys;
        choose_zone(c, t, &s, zone, mine, &cut);
        before += s.n_keys;
    }
    plong_choose_these(c, tile, m.pieces, cut.n, m.order, cut.taken);
}
