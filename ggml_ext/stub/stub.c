/*
 * stub.c - a backend of plain loops in double precision, one row and one key after another. It shows how to execute
 * work.h, and proves that a backend needs nothing else. Only tests compile it.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "choose.h"
#include "lsh.h"
#include "position_map.h"
#include "rotate.h"

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

static void read_row(int32_t type, const char * from, float * x, int32_t d) {
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

/* The logit of the best key of a piece, for the row of a token and head; no query asks keys of the zone in which they are
 * rotated first. */
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
    double                        best = -INFINITY;
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
        best = sum > best ? sum : best;
    }
    best *= (double) c->params.scale * (double) plong_rope_logn(rope, p);
    if (c->params.soft_cap > 0.0f) {
        best = (double) c->params.soft_cap * tanh(best / (double) c->params.soft_cap);
    }
    return best - (double) plong_alibi_slope(c->params.max_bias, c->n_head, head) * (p - piece->pos);
}

/* Writes the pages that the batch lists, then chooses for each tile. */
PLONG_API void plong_stub_choose(struct ggml_tensor * op) {
    const struct plong_call    c      = plong_choosing_call_of(op);
    const struct plong_tile *  tiles  = plong_work_tiles(c.work);
    const struct plong_page *  pages  = plong_batch_pages(c.batch);
    const size_t               most   = (size_t) plong_pieces_most(c.n_cells, c.batch->n_runs);
    struct plong_piece * const pieces = malloc(most * sizeof(*pieces));
    float *const weights = malloc(most * sizeof(float)), *const rows = malloc(PLONG_PAGE * MAX_D * sizeof(float));
    double * const  logits = malloc(most * sizeof(double));
    int32_t * const order  = malloc(most * sizeof(int32_t));
    void * const    lsh    = malloc(plong_lsh_scratch(c.d_k, c.n_cells, c.batch->n_runs, c.n_group));
    for (int32_t i = 0; i < c.batch->n_pages; i++) {
        for (int32_t kv = 0; kv < c.n_head / c.n_group; kv++) {
            plong_page_write(&c, pages[i], kv, rows);
        }
    }
    for (int32_t n = 0; n < c.work->n_tiles; n++) {
        int32_t       tokens[PLONG_ASKED];
        const int32_t n_pieces = tiles[n].choice_room > 0 ? plong_pieces(&c, &tiles[n], pieces) : 0;
        const int32_t n_tokens = plong_asked(&c, &tiles[n], tokens);
        memset(weights, 0, (size_t) n_pieces * sizeof(float));
        const struct plong_phase * phase  = plong_batch_phase(c.batch, tiles[n].phase);
        const bool                 weighs = plong_phase_weighs(phase);
        for (int32_t r = 0; weighs && n_pieces > 0 && r < n_tokens * tiles[n].n_h; r++) {
            double most_logit = -INFINITY, sum = 0;
            for (int32_t i = 0; i < n_pieces; i++) {
                logits[i] =
                    piece_logit(&c, &tiles[n], tokens[r / tiles[n].n_h], tiles[n].head + r % tiles[n].n_h, &pieces[i]);
                most_logit = logits[i] > most_logit ? logits[i] : most_logit;
            }
            for (int32_t i = 0; i < n_pieces; i++) {
                logits[i] = exp(logits[i] - most_logit);
                sum += logits[i];
            }
            for (int32_t i = 0; i < n_pieces; i++) {
                weights[i] += (float) (logits[i] / sum / (n_tokens * tiles[n].n_h));
            }
        }
        if (n_pieces > 0 && plong_phase_hashed(phase, n_pieces) > 0) {
            plong_choose_hashed(&c, n, pieces, n_pieces, lsh);
        } else if (tiles[n].choice_room > 0) {
            plong_choose(&c, n, pieces, weights, n_pieces, order, NULL);
        }
    }
    free(pieces);
    free(weights);
    free(rows);
    free(logits);
    free(order);
    free(lsh);
}
