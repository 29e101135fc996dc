/*
 * stub.c - a backend of plain loops in double precision, one row and one key after another. It shows how to execute
 * work.h, and proves that a backend needs nothing else. Only tests compile it.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "lsh.h"
#include "position_map.h"
#include "rotate.h"
#include "verify.h"

enum { MAX_D = 1024 };

/* Limits other than the CPU's, since results must not depend on them. */
PLONG_API struct plong_limits plong_stub_limits(const struct plong_shape * shape, int n_threads) {
    (void) shape, (void) n_threads;
    return (struct plong_limits) {
        .max_rows      = 24,
        .min_rows      = 8,
        .tiles         = 5,
        .dilated_tiles = 3,
        .dilated_rows  = 3,
        .classes       = 3,
        .narrow        = 3,
        .narrow_rows   = 12,
        .span          = 96,
        .narrow_span   = 17,
        .narrow_spans  = 3,
        .range_rows    = 11,
    };
}

PLONG_API const char * plong_stub_supports(const struct ggml_tensor * op) {
    return op->src[1]->ne[0] > MAX_D || op->src[2]->ne[0] > MAX_D ? "head size over 1024" : NULL;
}

static void read_row(int32_t type, const void * from, float * x, int32_t d) {
    if (type == GGML_TYPE_F32) {
        memcpy(x, from, (size_t) d * sizeof(float));
    } else {
        ggml_get_type_traits((enum ggml_type) type)->to_float(from, x, d);
    }
}

/* The cell of a position of the tile's sequence, or -1. */
static int64_t find_cell(const struct plong_call * c, const struct plong_tile * tile, int32_t pos) {
    const struct plong_run * runs = plong_batch_runs(c->batch);
    for (int32_t i = tile->run_beg; i < tile->run_end; i++) {
        if (runs[i].pos <= pos && pos < runs[i].pos + runs[i].n) {
            return runs[i].cell + (pos - runs[i].pos);
        }
    }
    return -1;
}

/* Query and key are rotated to positions of their own; the query is rotated further to the distance of the policy. */
static double logit(const struct plong_call * c, int32_t tok, int32_t head, const char * key, int32_t p, int32_t t) {
    const struct plong_rope * rope = &c->batch->rope;
    float                     q[MAX_D], k[MAX_D], angles[PLONG_MAX_ROT];
    double                    sum = 0;
    read_row(GGML_TYPE_F32, c->q + (size_t) tok * c->q_tok + (size_t) head * c->q_head, q, c->d_k);
    read_row(c->k_type, key, k, c->d_k);
    if (c->params.n_rot > 0) {
        const int64_t stored = (int64_t) plong_rope_stored(rope, p) - plong_rope_stored(rope, t);
        const int64_t shift  = plong_rope_distance(rope, p, t) - stored;
        plong_rope_angles(c->table, c->params.n_rot, &shift, 1, angles);
        row_rotate(q + c->params.rot_first, angles, c->params.n_rot, c->params.neox);
    }
    if (c->params.hadamard) {
        row_hadamard(q, c->d_k, c->params.hadamard);
    }
    for (int32_t i = 0; i < c->d_k; i++) {
        sum += (double) q[i] * (double) k[i];
    }
    sum *= (double) c->params.scale * (double) plong_rope_logn(rope, p);
    if (c->params.soft_cap > 0.0f) {
        sum = (double) c->params.soft_cap * tanh(sum / (double) c->params.soft_cap);
    }
    return sum - (double) plong_alibi_slope(c->params.max_bias, c->n_head, head) * (p - t);
}

/* log_w of a key for a row of the readers; -INFINITY when the row does not read it. */
static double log_weight(
    const struct plong_call * c, const struct plong_tile * tile, const struct plong_tile_range * range,
    const struct plong_row * row, int32_t t) {
    const struct plong_readers * r  = plong_work_readers(c->work) + range->readers;
    const struct plong_phase *   ph = plong_batch_phase(c->batch, tile->phase);
    const int32_t head = plong_row_head(c->work, tile, row->row), h = plong_shape_number(&c->work->shape, head);
    int           times = 1;
    if (t > row->hi || (t < row->lo && t >= range->sinks_end) ||
        (r->checks && plong_branch_weight(ph, r->branch, row->pos, h, t) == -INFINITY)) {
        return -INFINITY;
    }
    if (row->count >= 0) {
        const struct plong_count n = plong_work_counts(c->work)[r->count_beg + row->count];
        for (int k = r->branch + 1; k <= n.top; k++) {
            times += t % plong_branch_rate(ph, k) == n.place % plong_branch_rate(ph, k);
        }
    }
    return (double) range->log2_weight * log(2) + log(times);
}

struct sums {
    double max, sum, acc[MAX_D];
};

static void add_key(struct sums * s, double x, const float * v, int32_t d) {
    const double max = x > s->max ? x : s->max, keep = exp(s->max - max), weight = exp(x - max);
    for (int32_t i = 0; i < d; i++) {
        s->acc[i] = s->acc[i] * keep + weight * (double) v[i];
    }
    s->sum = s->sum * keep + weight;
    s->max = max;
}

/* Adds the keys of a range to the sums of the rows that read it: s [rows of the tile] */
static void add_range(
    const struct plong_call * c, const struct plong_tile * tile, const struct plong_tile_range * range,
    struct sums * s) {
    const struct plong_readers * r    = plong_work_readers(c->work) + range->readers;
    const struct plong_row *     rows = plong_work_rows(c->work);
    for (int64_t t = range->keys.beg; t < range->keys.end; t += range->keys.stride) {
        const int64_t cell = find_cell(c, tile, (int32_t) t);
        for (int32_t i = r->row_beg; cell >= 0 && i < r->row_end; i++) {
            const struct plong_row * row  = &rows[i];
            const double             w    = log_weight(c, tile, range, row, (int32_t) t);
            const int32_t            head = plong_row_head(c->work, tile, row->row), kv = head / c->n_group;
            const int32_t            tok = plong_row_tok(tile, row->row);
            float                    v[MAX_D];
            if (w == -INFINITY) {
                continue;
            }
            const char * key = c->k + tile->stream * c->k_stream + (size_t) cell * c->k_cell + kv * c->k_head;
            read_row(
                c->v_type, c->v + tile->stream * c->v_stream + (size_t) cell * c->v_cell + kv * c->v_head, v, c->d_v);
            add_key(&s[row->row], w + logit(c, tok, head, key, row->pos, (int32_t) t), v, c->d_v);
        }
    }
}

/* Bytes that a call needs besides its tensors. */
PLONG_API size_t plong_stub_scratch(const struct ggml_tensor * op) {
    return (size_t) plong_call_of(op).work->tile_rows * sizeof(struct sums);
}

PLONG_API void plong_stub_compute(struct ggml_tensor * op, void * scratch) {
    const struct plong_call         c      = plong_call_of(op);
    const struct plong_tile *       tiles  = plong_work_tiles(c.work);
    const struct plong_tile_range * ranges = plong_work_ranges(c.work);
    struct sums *                   s      = scratch;
    plong_zero_strays(&c);
    for (int32_t n = 0; n < c.work->n_tiles; n++) {
        const struct plong_tile * tile = &tiles[n];
        if (plong_tile_idle(&c, tile)) {
            continue;
        }
        for (int32_t r = 0; r < plong_tile_rows(tile); r++) {
            s[r] = (struct sums) { .max = -INFINITY };
        }
        for (int32_t i = tile->range_beg; i < tile->range_end; i++) {
            add_range(&c, tile, &ranges[i], s);
        }
        for (int32_t i = 0; tile->choice_room > 0 && i < plong_choices(&c, n)->n; i++) {
            add_range(&c, tile, plong_choice_ranges(&c) + plong_choices(&c, n)->beg + i, s);
        }
        for (int32_t r = 0; r < plong_tile_rows(tile); r++) {
            const int32_t tok = plong_row_tok(tile, r), head = plong_row_head(c.work, tile, r);
            float *       out = (float *) c.out + ((size_t) tok * c.n_head + head) * c.d_v;
            s[r].sum += s[r].sum > 0 && c.sink_logits ? exp((double) c.sink_logits[head] - s[r].max) : 0;
            for (int32_t i = 0; i < c.d_v; i++) {
                out[i] = s[r].sum > 0 ? (float) (s[r].acc[i] / s[r].sum) : 0.0f;
            }
        }
    }
}

/* ---- choosing keys ---------------------------------------------------------------------------------------------- */

/* Dim i of the key of a page's cell j, as the index has it. */
static double indexed(const struct plong_index_page * page, int32_t j, int32_t i) {
    const uint8_t byte   = page->nibbles[(size_t) (i / 4 * 2 + j / 32) * PLONG_PAGE + j % 16 * 4 + i % 4];
    const int     nibble = j / 16 % 2 ? byte >> 4 : byte & 15;
    return (double) page->lo[i] * (double) page->units[0] + (double) page->step[i] * (double) page->units[1] * nibble;
}

/* The logarithm of the sum of e^logit over the keys of a piece, for the row of a token and head; no query asks keys of the zone
 * in which they are rotated first. */
static double piece_logit(
    const struct plong_call * c, const struct plong_tile * tile, int32_t tok, int32_t head,
    const struct plong_piece * piece) {
    const struct plong_rope *     rope = &c->batch->rope;
    const int32_t                 map = c->params.n_rot > 0 ? rope->map : PLONG_MAP_ABSOLUTE, p = tile->pos + tok,
                                  kv    = head / c->n_group;
    const struct plong_index_head index = plong_index_of(c, tile->stream, kv);
    const struct plong_index_page page  = plong_page_at(&index, piece->cell / PLONG_PAGE);
    int32_t                       zone  = plong_map_zone(rope, map, p, piece->pos);
    float                         q[MAX_D], angles[PLONG_MAX_ROT];
    double                        keys[PLONG_PAGE], best = -INFINITY, total = 0;
    read_row(GGML_TYPE_F32, c->q + (size_t) (tile->tok + tok) * c->q_tok + (size_t) head * c->q_head, q, c->d_k);
    zone += plong_map_unfolds(map, zone);
    if (c->params.n_rot > 0) {
        const int64_t shift = plong_map_query(rope, map, zone, p) - plong_map_stored(rope, map, p);
        plong_rope_angles(c->table, c->params.n_rot, &shift, 1, angles);
        row_rotate(q + c->params.rot_first, angles, c->params.n_rot, c->params.neox);
    }
    if (c->params.hadamard) {
        row_hadamard(q, c->d_k, c->params.hadamard);
    }
    for (int32_t j = 0; j < piece->n; j++) {
        double sum = 0;
        for (int32_t i = 0; i < c->d_k; i++) {
            sum += (double) q[i] * indexed(&page, piece->cell % PLONG_PAGE + j, i);
        }
        sum *= (double) c->params.scale * (double) plong_rope_logn(rope, p);
        if (c->params.soft_cap > 0.0f) {
            sum = (double) c->params.soft_cap * tanh(sum / (double) c->params.soft_cap);
        }
        keys[j] = sum - (double) plong_alibi_slope(c->params.max_bias, c->n_head, head) * (p - piece->pos);
        best    = keys[j] > best ? keys[j] : best;
    }
    for (int32_t j = 0; j < piece->n; j++) {
        total += exp(keys[j] - best);
    }
    return best + log(total);
}

/* What a thread needs to choose. */
struct choosing {
    const struct plong_call * call;
    const struct plong_tile * tile;
    size_t                    most; /* pieces */
    struct plong_piece *      pieces;
    float *                   weights;
    int32_t *                 order;
    double *                  logits; /* [most] */
    float *                   terms;  /* [asked rows][most] */
    float *                   top;    /* [asked rows] */
    struct sums *             sums;   /* [rows] of what is read exactly */
    float *                   state;  /* [rows][2 + d_v] */
    void *                    scratch;
    void *                    lsh;
    bool                      begun; /* set parts were added to the sums */
};

/* The shares of n pieces, and what each row has of them. */
static void weigh(struct choosing * x, int32_t n) {
    int32_t       tokens[PLONG_ASKED];
    const int32_t n_tokens = plong_asked(x->call, x->tile, tokens), rows = n_tokens * x->tile->n_h;
    memset(x->weights, 0, (size_t) n * sizeof(float));
    for (int32_t r = 0; n > 0 && r < rows; r++) {
        const int32_t tok = tokens[r / x->tile->n_h], head = x->tile->head + r % x->tile->n_h;
        double        best = -INFINITY, sum = 0;
        for (int32_t i = 0; i < n; i++) {
            x->logits[i] = piece_logit(x->call, x->tile, tok, head, &x->pieces[i]);
            best         = x->logits[i] > best ? x->logits[i] : best;
        }
        for (int32_t i = 0; i < n; i++) {
            x->terms[r * x->most + i] = (float) exp(x->logits[i] - best);
            sum += exp(x->logits[i] - best);
        }
        for (int32_t i = 0; i < n; i++) {
            x->weights[i] += x->terms[r * x->most + i] / (float) (sum * rows);
        }
        x->top[r] = (float) (best / log(2));
    }
}

/* plong_summing.add */
static void add_exact(void * self, const struct plong_piece * pieces, const int32_t * which, int32_t n) {
    struct choosing *               x      = self;
    const struct plong_tile_range * ranges = plong_work_ranges(x->call->work);
    const int32_t                   d = x->call->d_v, rows = plong_tile_rows(x->tile);
    for (int32_t i = x->tile->range_beg; !x->begun && i < x->tile->range_end; i++) {
        add_range(x->call, x->tile, &ranges[i], x->sums);
    }
    x->begun = true;
    for (int32_t i = 0; i < n; i++) {
        struct plong_tile_range range;
        int32_t                 none = 0;
        plong_add_piece(&range, &none, &pieces[which[i]], ranges[x->tile->range_beg].readers);
        add_range(x->call, x->tile, &range, x->sums);
    }
    for (int32_t r = 0; r < rows; r++) {
        x->state[r]        = (float) (x->sums[r].max / log(2));
        x->state[rows + r] = (float) x->sums[r].sum;
        for (int32_t i = 0; i < d; i++) {
            x->state[2 * rows + r * d + i] = (float) x->sums[r].acc[i];
        }
    }
}

static void choose_keys(struct choosing * x, int32_t tile) {
    const struct plong_call *  c     = x->call;
    const struct plong_phase * phase = plong_batch_phase(c->batch, x->tile->phase);
    const int32_t              n = plong_pieces(c, x->tile, x->pieces), rows = plong_tile_rows(x->tile);
    const bool                 verifies = plong_phase_verifies(phase) && !plong_verify_few(x->pieces, n);
    struct plong_verifying     v        = {
        .terms   = { x->terms, x->top, (int32_t) x->most },
        .to_f32  = read_row,
        .exact   = { add_exact, x, { x->state, x->state + rows, x->state + 2 * rows }, c->d_v },
        .scratch = x->scratch,
    };
    if (plong_phase_hashed(phase, n) > 0) {
        plong_choose_hashed(c, tile, x->pieces, n, x->lsh);
        return;
    }
    if (plong_phase_weighs(phase)) {
        weigh(x, n);
    }
    for (int32_t r = 0; verifies && r < rows; r++) {
        x->sums[r] = (struct sums) { .max = -INFINITY };
    }
    x->begun                           = false;
    const struct plong_candidates from = { x->pieces, x->weights, n, x->order };
    plong_choose(c, tile, &from, NULL, verifies ? &v : NULL);
}

/* Writes the pages that the batch lists, then chooses for each tile. */
PLONG_API void plong_stub_choose(struct ggml_tensor * op) {
    const struct plong_call   c     = plong_choosing_call_of(op);
    const struct plong_tile * tiles = plong_work_tiles(c.work);
    const struct plong_page * pages = plong_batch_pages(c.batch);
    const size_t    most = (size_t) plong_pieces_most(c.n_cells, c.batch->n_runs), rows = (size_t) c.work->tile_rows;
    float * const   keys = malloc(PLONG_PAGE * MAX_D * sizeof(float));
    struct choosing x    = {
        .call    = &c,
        .most    = most,
        .pieces  = malloc(most * sizeof(struct plong_piece)),
        .weights = malloc(most * sizeof(float)),
        .order   = malloc(most * sizeof(int32_t)),
        .logits  = malloc(most * sizeof(double)),
        .terms   = malloc(most * PLONG_ASKED * (size_t) c.n_group * sizeof(float)),
        .top     = malloc(PLONG_ASKED * (size_t) c.n_group * sizeof(float)),
        .sums    = malloc(rows * sizeof(struct sums)),
        .state   = malloc(rows * (2 + (size_t) c.d_v) * sizeof(float)),
        .scratch = malloc(plong_verify_scratch(c.d_k, c.d_v, c.n_group, (int64_t) most)),
        .lsh     = malloc(plong_lsh_scratch(c.d_k, c.n_cells, c.batch->n_runs, c.n_group)),
    };
    for (int32_t i = 0; i < c.batch->n_pages; i++) {
        for (int32_t kv = 0; kv < c.n_head / c.n_group; kv++) {
            plong_page_write(&c, pages[i], kv, keys);
        }
    }
    for (int32_t n = 0; n < c.work->n_tiles; n++) {
        x.tile = &tiles[n];
        if (tiles[n].choice_room > 0) {
            choose_keys(&x, n);
        }
    }
    plong_choices_settle(&c);
    free(keys);
    free(x.pieces);
    free(x.weights);
    free(x.order);
    free(x.logits);
    free(x.terms);
    free(x.top);
    free(x.sums);
    free(x.state);
    free(x.scratch);
    free(x.lsh);
}
