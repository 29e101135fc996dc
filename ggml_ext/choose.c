/* choose.c - the index of keys, and the choice of blocks by their weights. */
#include "choose.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ggml.h"
#include "lsh.h"
#include "verify.h"

static int32_t min_i32(int32_t a, int32_t b) { return a < b ? a : b; }
static int32_t max_i32(int32_t a, int32_t b) { return a > b ? a : b; }

/* ---- index ---------------------------------------------------------------------------------------------------- */

static size_t bound_bytes(int32_t d_k) {
    const size_t bounds = (size_t) plong_bounded(d_k) * (sizeof(int16_t) + 1) + 2 * sizeof(float);
    return (bounds + 63) & ~(size_t) 63;
}

size_t plong_page_bytes(int32_t parts, int32_t d_k) {
    return (parts & PLONG_INDEX_DIGITS ? plong_nibble_bytes(d_k) + bound_bytes(d_k) : 0) +
           (parts & PLONG_INDEX_RANKS ? PLONG_PAGE * sizeof(uint16_t) : 0);
}

size_t plong_index_bytes(int32_t parts, int32_t d_k, int32_t n_head_kv, int64_t n_cells, int64_t n_stream) {
    const int64_t pages = (n_cells + PLONG_PAGE - 1) / PLONG_PAGE;
    return plong_page_bytes(parts, d_k) * (size_t) (n_head_kv * pages * n_stream);
}

struct plong_index_head plong_index_of(const struct plong_call * c, int32_t stream, int32_t kv) {
    char * const nibbles = c->index + stream * c->index_stream + kv * c->index_head;
    const size_t n_pages = c->index_head / c->index_page;
    const bool   digits  = plong_plan_index(&c->batch->plan) & PLONG_INDEX_DIGITS;
    const size_t bytes = digits ? plong_nibble_bytes(c->d_k) : 0, bounds = digits ? bound_bytes(c->d_k) : 0;
    return (struct plong_index_head) {
        .nibbles      = nibbles,
        .bounds       = nibbles + n_pages * bytes,
        .nibble_bytes = bytes,
        .bound_bytes  = bounds,
        .dims         = (size_t) plong_bounded(c->d_k),
        .ranks        = (uint16_t *) (nibbles + n_pages * (bytes + bounds)),
    };
}

/* Row j of K, of one page, as float32; values that are no finite numbers become 0. */
static void read_row(const struct plong_call * c, const char * from, float * x) {
    if (c->k_type == GGML_TYPE_F32) {
        memcpy(x, from, (size_t) c->d_k * sizeof(float));
    } else {
        ggml_get_type_traits((enum ggml_type) c->k_type)->to_float(from, x, c->d_k);
    }
    for (int32_t i = 0; i < c->d_k; i++) {
        x[i] = x[i] - x[i] == 0.0f ? x[i] : 0.0f;
    }
}

#define MOST_DIMS (4 * 256)

/* The bounds of each dim, and the units of all of them. */
struct bounds {
    float lo[MOST_DIMS], hi[MOST_DIMS];
    float lo_unit, step_unit;
};

static void find_bounds(const float * rows, int32_t n, int32_t d, struct bounds * b) {
    float most = 0.0f, widest = 0.0f;
    for (int32_t i = 0; i < d; i++) {
        b->lo[i] = b->hi[i] = rows[i];
    }
    for (int32_t j = 1; j < n; j++) {
        const float * x = rows + (size_t) j * d;
        for (int32_t i = 0; i < d; i++) {
            b->lo[i] = x[i] < b->lo[i] ? x[i] : b->lo[i];
            b->hi[i] = x[i] > b->hi[i] ? x[i] : b->hi[i];
        }
    }
    for (int32_t i = 0; i < d; i++) {
        most   = fabsf(b->lo[i]) > most ? fabsf(b->lo[i]) : most;
        widest = b->hi[i] - b->lo[i] > widest ? b->hi[i] - b->lo[i] : widest;
    }
    b->lo_unit   = most / PLONG_LO_MOST;
    b->step_unit = widest / (15 * 255);
}

/* Sets lo and step of each dim, and what a value is counted from and multiplied by to be a nibble: from, scale [d]. */
static void write_bounds(const struct bounds * b, struct plong_index_page p, int32_t d, float * from, float * scale) {
    memset(p.lo, 0, (size_t) plong_bounded(d) * sizeof(*p.lo));
    memset(p.step, 0, (size_t) plong_bounded(d));
    for (int32_t i = 0; i < d; i++) {
        p.lo[i]         = (int16_t) (b->lo_unit > 0.0f ? floorf(b->lo[i] / b->lo_unit) : 0.0f);
        from[i]         = p.lo[i] * b->lo_unit;
        const float top = b->step_unit > 0.0f ? ceilf((b->hi[i] - from[i]) / (15 * b->step_unit)) : 0.0f;
        p.step[i]       = (uint8_t) fminf(top, 255);
        scale[i]        = p.step[i] > 0 ? 1 / (p.step[i] * b->step_unit) : 0.0f;
    }
    p.units[0] = b->lo_unit;
    p.units[1] = b->step_unit;
}

/* The nibbles of a row. */
static void row_nibbles(const float * x, int32_t d, const float * from, const float * scale, uint8_t * out) {
    for (int32_t i = 0; i < d; i++) {
        const float y = (x[i] - from[i]) * scale[i] + 0.5f;
        out[i]        = (uint8_t) (int32_t) (y < 15.0f ? y : 15.0f);
    }
}

/* The keys of a page in 4 bits. */
static void write_digits(struct plong_index_page p, const float * rows, int32_t d) {
    struct bounds b;
    float         from[MOST_DIMS], scale[MOST_DIMS];
    uint8_t       low[MOST_DIMS] = { 0 }, high[MOST_DIMS] = { 0 };
    find_bounds(rows, PLONG_PAGE, d, &b);
    write_bounds(&b, p, d, from, scale);
    for (int32_t j = 0; j < PLONG_PAGE / 2; j++) {
        const int32_t key = j / 16 * 32 + j % 16;
        uint8_t *     out = p.nibbles + (size_t) (j / 16) * PLONG_PAGE + j % 16 * 4;
        row_nibbles(rows + (size_t) key * d, d, from, scale, low);
        row_nibbles(rows + (size_t) (key + 16) * d, d, from, scale, high);
        for (int32_t i = 0; i < d; i++) {
            low[i] = (uint8_t) (low[i] | high[i] << 4);
        }
        for (int32_t q = 0; q < plong_quads(d); q++) {
            memcpy(out + (size_t) q * 2 * PLONG_PAGE, low + 4 * q, 4);
        }
    }
}

void plong_page_write(const struct plong_call * c, struct plong_page page, int32_t kv, float * rows) {
    const struct plong_index_head head = plong_index_of(c, page.stream, kv);
    const int32_t                 d = c->d_k, parts = plong_plan_index(&c->batch->plan);
    const int64_t                 first = (int64_t) page.page * PLONG_PAGE;
    const int64_t                 last  = c->n_cells - 1; /* whose key stands for those that the page lacks */
    for (int32_t j = 0; j < PLONG_PAGE; j++) {
        const int64_t cell = first + j < last ? first + j : last;
        read_row(c, c->k + page.stream * c->k_stream + cell * c->k_cell + kv * c->k_head, rows + (size_t) j * d);
    }
    if (parts & PLONG_INDEX_DIGITS) {
        write_digits(plong_page_at(&head, page.page), rows, d);
    }
    if (parts & PLONG_INDEX_RANKS) {
        plong_lsh_ranks(rows, PLONG_PAGE, d, head.ranks + (size_t) page.page * PLONG_PAGE);
    }
}

/* ---- pieces --------------------------------------------------------------------------------------------------- */

int64_t plong_pieces_most(int64_t n_cells, int64_t n_runs) { return n_cells / 16 + 2 * n_runs + 1; }

int32_t plong_pieces(const struct plong_call * c, const struct plong_tile * tile, struct plong_piece * pieces) {
    const struct plong_phase * ph    = plong_batch_phase(c->batch, tile->phase);
    const struct plong_run *   runs  = plong_batch_runs(c->batch);
    const int32_t              block = plong_phase_block(ph);
    int32_t                    beg, end, n = 0;
    plong_phase_candidates(ph, tile->pos, &beg, &end);
    for (int32_t r = tile->run_beg; r < tile->run_end; r++) {
        int32_t       pos  = max_i32(runs[r].pos, beg);
        const int32_t last = min_i32(runs[r].pos + runs[r].n, end);
        while (pos < last) {
            const int32_t cell = runs[r].cell + (pos - runs[r].pos), room = block - (cell & (block - 1));
            pieces[n++] = (struct plong_piece) { pos, cell, min_i32(room, last - pos) };
            pos += pieces[n - 1].n;
        }
    }
    return n;
}

int32_t plong_asked(const struct plong_call * c, const struct plong_tile * tile, int32_t * tokens) {
    const struct plong_phase * ph   = plong_batch_phase(c->batch, tile->phase);
    const int32_t              rows = plong_phase_rows(ph), step = rows / PLONG_ASKED;
    int32_t                    n = 0;
    for (int32_t i = 0; i < tile->n_tok && step > 0; i++) {
        if ((tile->pos + i) % step == step / 2) {
            tokens[n++] = i;
        }
    }
    if (n == 0) {
        tokens[n++] = tile->n_tok - 1;
    }
    return n;
}

/* ---- choice --------------------------------------------------------------------------------------------------- */

const struct plong_choice * plong_choices(const struct plong_call * c, int32_t tile) {
    return (const struct plong_choice *) c->choices + tile;
}

const struct plong_tile_range * plong_choice_ranges(const struct plong_call * c) {
    return (const struct plong_tile_range *) ((const struct plong_choice *) c->choices + c->work->n_tiles);
}

static struct plong_verdict * verdicts_of(const struct plong_call * c) {
    return (
        struct plong_verdict *) ((struct plong_tile_range *) ((struct plong_choice *) c->choices + c->work->n_tiles) +
                                 c->work->n_chosen);
}

/* Reading all keys of a single kv head takes about twice its part of the time that all of them take together. */
static bool reads_whole(const struct plong_call * c, const struct plong_verdict * v) {
    return 5 * v->heads >= 2 * (c->n_head / c->n_group);
}

void plong_choices_settle(const struct plong_call * c) {
    const struct plong_tile * tiles    = plong_work_tiles(c->work);
    struct plong_choice *     choices  = c->choices;
    struct plong_verdict *    verdicts = verdicts_of(c);
    memset(verdicts, 0, (size_t) c->work->n_options * sizeof(*verdicts));
    for (int pass = 0; pass < 2 && c->work->n_options > 0; pass++) {
        for (int32_t i = 0; i < c->work->n_tiles; i++) {
            struct plong_verdict * v = &verdicts[tiles[i].tok];
            if (tiles[i].option != PLONG_OPTION_CHOICE || tiles[i].choice_room == 0) {
                continue;
            }
            if (pass == 0 && choices[i].all) {
                v->heads++;
                v->tile = i;
            } else if (pass == 1 && reads_whole(c, v)) {
                choices[i] = choices[v->tile];
            }
        }
    }
}

bool plong_tile_idle(const struct plong_call * c, const struct plong_tile * tile) {
    return tile->option != PLONG_OPTION_NONE &&
           reads_whole(c, &verdicts_of(c)[tile->tok]) == (tile->option == PLONG_OPTION_CHOICE);
}

/* Whether piece a is better than b: of equal ones the later. */
static bool better(const float * weights, int32_t a, int32_t b) {
    return weights[a] > weights[b] || (weights[a] == weights[b] && a > b);
}

/* Moves the best `k` of order[n] to its front (quickselect). */
static void select_few(const float * weights, int32_t * order, int32_t n, int32_t k) {
    int32_t lo = 0, hi = n - 1;
    while (lo < hi) {
        const int32_t pivot = order[lo + (hi - lo) / 2];
        int32_t       i = lo, j = hi;
        while (i <= j) {
            while (better(weights, order[i], pivot)) {
                i++;
            }
            while (better(weights, pivot, order[j])) {
                j--;
            }
            if (i <= j) {
                const int32_t x = order[i];
                order[i++]      = order[j];
                order[j--]      = x;
            }
        }
        if (k - 1 <= j) {
            hi = j;
        } else if (k - 1 >= i) {
            lo = i;
        } else {
            return;
        }
    }
}

/* A float from 0 on by its exponent and its first bits: larger ones are in later buckets. */
#define BUCKETS 2048

static int32_t bucket_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return (int32_t) (bits >> 20 & (BUCKETS - 1));
}

/* Moves the best `k` of order[n] to its front. Buckets tell for most of them whether they are. */
static void select_best(const float * weights, int32_t * order, int32_t n, int32_t k) {
    int32_t count[BUCKETS] = { 0 }, last = BUCKETS - 1, better_ones = 0, sure = 0, some = 0;
    for (int32_t i = 0; i < n; i++) {
        count[bucket_of(weights[order[i]])]++;
    }
    for (; last > 0 && better_ones + count[last] < k; last--) {
        better_ones += count[last];
    }
    /* First come those of later buckets, [0, sure), then those of the last, [sure, some). */
    for (int32_t i = 0; i < n; i++) {
        const int32_t x = order[i], bucket = bucket_of(weights[x]);
        if (bucket >= last) {
            order[i]      = order[some];
            order[some++] = order[sure];
            if (bucket > last) {
                order[sure++] = x;
            } else {
                order[some - 1] = x;
            }
        }
    }
    select_few(weights, order + sure, some - sure, k - sure);
}

/* Bounds of pages are rough: among few pieces, a rough look saves nothing, and a single query would lose facts by it that
 * lie in one key. */
#define LOOK_MANY 256
#define LOOK_ONE  2048

int32_t plong_closer_look(const struct plong_call * c, const struct plong_tile * tile, int32_t n) {
    const struct plong_phase * ph   = plong_batch_phase(c->batch, tile->phase);
    const bool                 one  = plong_phase_rows(ph) == 1; /* a query that looks for one fact */
    const int32_t              keep = max_i32(n / (one ? 3 : 5), 3 * plong_phase_budget(ph, n));
    if (plong_phase_grows(c->batch, tile->phase) || plong_phase_verifies(ph)) { /* by any of them */
        return n;
    }
    return n < (one ? LOOK_ONE : LOOK_MANY) || keep > n / 2 ? n : keep;
}

void plong_best(const float * weights, int32_t n, int32_t keep, int32_t * order, uint8_t * left) {
    for (int32_t i = 0; i < n; i++) {
        order[i] = i;
    }
    select_best(weights, order, n, keep);
    memset(left, 0, (size_t) n);
    for (int32_t i = 0; i < keep; i++) {
        left[order[i]] = 1;
    }
}

static int by_index(const void * a, const void * b) {
    const int32_t x = *(const int32_t *) a, y = *(const int32_t *) b;
    return (x > y) - (x < y);
}

/* Sorts order[n], the best last (heapsort). */
static void sort_best(const float * weights, int32_t * order, int32_t n) {
    for (int32_t beg = n / 2, end = n; end > 1;) {
        if (beg > 0) {
            beg--;
        } else {
            const int32_t x = order[--end];
            order[end]      = order[0];
            order[0]        = x;
        }
        for (int32_t root = beg, child; (child = 2 * root + 1) < end; root = child) {
            child += child + 1 < end && better(weights, order[child + 1], order[child]);
            if (!better(weights, order[child], order[root])) {
                break;
            }
            const int32_t x = order[root];
            order[root]     = order[child];
            order[child]    = x;
        }
    }
}

/* Sorts the best pieces, the best first, and returns how many of them have the mass. */
static int32_t cut_mass(const struct plong_phase * ph, const float * weights, int32_t * order, int32_t k) {
    const int32_t least = min_i32(plong_phase_least(ph), k);
    double        have  = 0;
    if (plong_phase_mass(ph) >= 1.0f) {
        return k;
    }
    sort_best(weights, order, k);
    for (int32_t i = 0; i < k / 2; i++) {
        const int32_t x  = order[i];
        order[i]         = order[k - 1 - i];
        order[k - 1 - i] = x;
    }
    for (int32_t i = 0; i < k; i++) {
        if (i >= least && have >= (double) plong_phase_mass(ph)) {
            return i;
        }
        have += (double) weights[order[i]];
    }
    return k;
}

int32_t plong_tile_checks(
    const struct plong_call * c, const struct plong_tile * tile, int32_t * first, int32_t * token) {
    const int32_t * checks = plong_batch_checks(c->batch);
    int32_t         lo = 0, hi = c->batch->n_checks, n = 0;
    while (lo < hi) {
        const int32_t mid = lo + (hi - lo) / 2;
        if (checks[mid] < tile->tok) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    while (lo + n < c->batch->n_checks && checks[lo + n] < tile->tok + tile->n_tok) {
        n++;
    }
    *first = lo;
    *token = n > 0 ? checks[lo] - tile->tok : 0;
    return n;
}

/* plong_add_piece() with the weight of its keys. */
static void add_keys(
    struct plong_tile_range * ranges, int32_t * n, const struct plong_piece * piece, int32_t readers,
    float log2_weight) {
    const int32_t             end  = piece->pos + piece->n;
    struct plong_tile_range * last = ranges + *n - 1;
    if (*n > 0 && last->keys.end == piece->pos && last->log2_weight == log2_weight) {
        last->keys.end = last->sinks_end = end;
    } else {
        ranges[(*n)++] = (struct plong_tile_range) { { piece->pos, end, 1, -1 }, readers, end, log2_weight };
    }
}

void plong_add_piece(struct plong_tile_range * ranges, int32_t * n, const struct plong_piece * piece, int32_t readers) {
    add_keys(ranges, n, piece, readers, 0.0f);
}

/* Pieces in the order in which they are taken. */
struct ranking {
    const float * weights;
    int32_t *     order; /* those with a weight, then the others, the latest first */
    int32_t       weighed;
};

/* Ranks n pieces, of which at least k are ordered. */
static struct ranking ranking_of(const float * weights, int32_t n, int32_t * order, int32_t k) {
    struct ranking r = { weights, order, 0 };
    for (int32_t i = 0; i < n && k > 0; i++) {
        order[r.weighed] = i;
        r.weighed += weights[i] > 0.0f;
    }
    for (int32_t i = n - 1, at = r.weighed; i >= 0 && r.weighed < k; i--) {
        if (!(weights[i] > 0.0f)) {
            order[at++] = i;
        }
    }
    return r;
}

/* Makes order[from .. to) the best of those from `from` on. */
static void rank(struct ranking * r, int32_t from, int32_t to) {
    if (to < r->weighed) {
        select_best(r->weights, r->order + from, r->weighed - from, to - from);
    }
}

/* Takes more pieces, half as many again each time, until the trial is within the error. Returns their number. */
static int32_t grow(
    struct ranking * r, const struct plong_piece * pieces, int32_t k, int32_t room, float error,
    const struct plong_trial * trial) {
    int32_t tried = 0;
    for (;;) {
        qsort(r->order + tried, (size_t) (k - tried), sizeof(*r->order), by_index);
        const float found = trial->add(trial->self, pieces, r->order + tried, k - tried);
        tried             = k;
        if (found <= error || k >= room) {
            return k;
        }
        k = min_i32(room, k + max_i32(k / 2, 4));
        rank(r, tried, k);
    }
}

/* Appends a key of each stratum of the rest, which stands for all keys of its stratum. */
static void choose_sample(
    const struct plong_call * c, const struct plong_tile * tile, const struct plong_rest * rest, int32_t n,
    struct plong_tile_range * ranges, int32_t readers, struct plong_choice * choice) {
    struct plong_strata s = plong_strata_of(rest, n, plong_sample_place(c, tile));
    while (choice->n < tile->choice_room && plong_strata_next(&s)) {
        const struct plong_piece key = { s.pos, s.cell, 1 };
        add_keys(ranges, &choice->n, &key, readers, log2f((float) s.size));
        choice->keys++;
    }
}

/* Writes a choice: the pieces order[k], which it sorts, and strata of the others; strata -1: as many as the phase says. */
static void write_choice(
    const struct plong_call * c, int32_t tile, const struct plong_piece * pieces, int32_t n, int32_t * order, int32_t k,
    int32_t strata) {
    const struct plong_tile *  t      = plong_work_tiles(c->work) + tile;
    const struct plong_phase * ph     = plong_batch_phase(c->batch, t->phase);
    struct plong_choice *      choice = (struct plong_choice *) c->choices + tile;
    struct plong_tile_range *  ranges = (struct plong_tile_range *) (choice - tile + c->work->n_tiles) + t->choice;
    const int32_t readers = t->range_end > t->range_beg ? plong_work_ranges(c->work)[t->range_beg].readers : 0;
    *choice               = (struct plong_choice) { t->choice, 0, 0, k == n };
    qsort(order, (size_t) k, sizeof(*order), by_index);
    for (int32_t i = 0; i < k; i++) {
        plong_add_piece(ranges, &choice->n, pieces + order[i], readers);
        choice->keys += pieces[order[i]].n;
    }
    struct plong_rest rest = { .pieces = pieces, .n = n, .chosen = order, .n_chosen = k };
    rest.n_keys            = plong_rest_keys(&rest);
    choose_sample(c, t, &rest, strata < 0 ? plong_phase_sample(ph, rest.n_keys) : strata, ranges, readers, choice);
}

void plong_choose_these(
    const struct plong_call * c, int32_t tile, const struct plong_piece * pieces, int32_t n, int32_t * order,
    int32_t k) {
    write_choice(c, tile, pieces, n, order, k, -1);
}

void plong_choose(
    const struct plong_call * c, int32_t tile, const struct plong_candidates * from, const struct plong_trial * trial,
    struct plong_verifying * verifying) {
    const struct plong_piece * pieces = from->pieces;
    int32_t *                  order  = from->order;
    const int32_t              n      = from->n;
    const struct plong_tile *  t      = plong_work_tiles(c->work) + tile;
    const struct plong_phase * ph     = plong_batch_phase(c->batch, t->phase);
    const int32_t              room   = min_i32(n, t->choice_room);
    const bool                 all    = plong_phase_verifies(ph) && !verifying;
    int32_t        k = plong_phase_weighs(ph) && !all ? min_i32(plong_phase_budget(ph, n), room) : 0, strata = -1;
    struct ranking r = ranking_of(from->weights, n, order, trial ? room : k);
    rank(&r, 0, k);
    k = cut_mass(ph, from->weights, order, k);
    k = trial ? grow(&r, pieces, k, room, c->batch->plan.error, trial) : k;
    if (plong_phase_verifies(ph)) {
        qsort(order, (size_t) k, sizeof(*order), by_index);
        strata = plong_verify(c, t, pieces, n, order, &k, verifying);
    }
    write_choice(c, tile, pieces, n, order, k, strata);
}
