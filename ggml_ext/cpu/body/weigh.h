/*
 * weigh.h - weighs the pieces from which a tile chooses its keys: logits of some of its rows against the 4-bit keys of the
 * index, page by page, in integers.
 *
 * The part of an instruction set before it (scores.h, or scores_plain.h) defines
 *
 *     index_digits(q16, q12, page, n, digits)
 *         digits [n] = q16 * step / 2^16, rounded, of n dims (a multiple of 32); returns the sum of q12 * lo
 *     index_above(digits, n)
 *         the sum of the digits [n] above 0
 *     index_scores(nibbles, ahead, quads, rows, out)
 *         struct index_sums out of struct index_rows against the nibbles of a page; ahead: as many bytes, which are to be
 *         prefetched
 */
#ifndef PLONG_CPU_BODY_WEIGH_H
#define PLONG_CPU_BODY_WEIGH_H

#include "cpu/body/index_rows.h"
#include "cpu/body/prefetch.h"
#include "cpu/body/zones.h"

#define PLONG_ASKED_ROWS \
    (PLONG_ASKED * 256) /* most rows that are asked: plong_row_limit() limits the heads of a tile */
#define WEIGH_FAR 8     /* pages ahead whose bounds are prefetched */

/* The rows of a tile that are asked. */
struct asked {
    int     tokens, heads, rows, zones; /* rows = tokens * heads */
    int     quads;
    int     dims;             /* padded to 32 */
    int     stride;           /* padded to 64 */
    int32_t pos[PLONG_ASKED]; /* [tokens] */
};

/* Pieces beg .. end of one page, which have the same distance to the queries. */
struct visit {
    int32_t beg, end;
    int32_t page;
    int32_t zone;
};

/* Scratch of weigh(), laid out by weigh_layout(). A query in integers is q16 * unit / 2^15, and about q12 * unit /
 * PLONG_LO_MOST. */
struct weigh_mem {
    float *        q; /* [zones][heads][pad32(d)] of one token */
    float *        angles;
    float *        unit; /* [zones][rows] */
    int16_t *      q16;  /* [zones][rows][stride] */
    int16_t *      q12;
    int8_t *       digits; /* [rows][stride] of one page */
    int32_t *      sums;   /* [rows][PLONG_PAGE] */
    int32_t *      tops;   /* [rows][PLONG_PAGE / 16] */
    float *        logits; /* [rows][pieces, padded to 16] */
    float *        parts;  /* the same: sums of a piece's keys, relative to the largest */
    int32_t *      order;  /* [pieces] */
    uint8_t *      left;   /* [pieces] */
    struct visit * visits; /* [pieces] */
};

static int weigh_stride(int32_t d_k) { return (plong_bounded(d_k) + 63) & ~63; }

static size_t weigh_layout(
    struct weigh_mem * m, uintptr_t base, int32_t d_k, int32_t heads, int64_t pieces, bool maps) {
    const size_t zones = maps ? PLONG_ZONES : 1, rows = (size_t) heads * PLONG_ASKED, dk = (size_t) plong_pad32(d_k);
    const size_t stride = (size_t) weigh_stride(d_k), padded = ((size_t) pieces + 15) & ~(size_t) 15;
    uintptr_t    at = base;
    m->q            = take_scratch(&at, zones * (size_t) heads * dk * sizeof(float));
    m->angles       = take_scratch(&at, PLONG_MAX_ROT * sizeof(float));
    m->unit         = take_scratch(&at, zones * rows * sizeof(float));
    m->q16          = take_scratch(&at, zones * rows * stride * sizeof(int16_t));
    m->q12          = take_scratch(&at, zones * rows * stride * sizeof(int16_t));
    m->digits       = take_scratch(&at, rows * stride);
    m->sums         = take_scratch(&at, rows * PLONG_PAGE * sizeof(int32_t));
    m->tops         = take_scratch(&at, rows * PLONG_PAGE / 16 * sizeof(int32_t));
    m->logits       = take_scratch(&at, rows * padded * sizeof(float));
    m->parts        = take_scratch(&at, rows * padded * sizeof(float));
    m->order        = take_scratch(&at, padded * sizeof(int32_t));
    m->left         = take_scratch(&at, padded);
    m->visits       = take_scratch(&at, padded * sizeof(*m->visits));
    return at - base;
}

static size_t weigh_scratch(int32_t d_k, int32_t heads, int64_t pieces, bool maps) {
    struct weigh_mem m;
    return weigh_layout(&m, 0, d_k, heads, pieces, maps);
}

/* One query in integers. */
static float weigh_digits(const float * q, int d, int stride, int16_t * q16, int16_t * q12) {
    float most = 0.0f;
    for (int i = 0; i < d; i++) {
        const float x = q[i] < 0 ? -q[i] : q[i];
        most          = x > most && x < 1e30f ? x : most;
    }
    most          = most > 1e-30f ? most : 0.0f; /* a query without numbers asks for nothing */
    const float f = most > 0.0f ? 32767 / most : 0.0f, g = most > 0.0f ? PLONG_LO_MOST / most : 0.0f;
    for (int i = 0; i < stride; i++) {
        const float x = i < d && q[i] >= -most && q[i] <= most ? q[i] : 0.0f; /* not for NaN */
        q16[i]        = (int16_t) (x * f);
        q12[i]        = (int16_t) (x * g);
    }
    return most;
}

static void weigh_queries(
    struct asked * a, struct weigh_mem * m, const struct plong_call * c, const struct plong_tile * tile, int32_t map,
    const int32_t * tokens) {
    const int dk = plong_pad32(c->d_k);
    for (int t = 0; t < a->tokens; t++) {
        struct plong_tile one = *tile;
        one.tok += tokens[t];
        one.pos += tokens[t];
        one.n_tok = 1;
        load_queries(c, &one, map, m->q, m->angles);
        for (int z = 0; z < a->zones; z++) {
            for (int h = 0; h < a->heads; h++) {
                const size_t row = (size_t) (z * a->rows + t * a->heads + h), at = row * (size_t) a->stride;
                m->unit[row] =
                    weigh_digits(m->q + (size_t) (z * a->heads + h) * dk, c->d_k, a->stride, m->q16 + at, m->q12 + at);
            }
        }
    }
}

/* A page for the asked rows: start [rows] is the logit of a key whose nibbles are 0, scale [rows] that of a sum. */
struct weighed_page {
    struct plong_index_page page;
    int                     zone;
    float                   start[PLONG_ASKED_ROWS], scale[PLONG_ASKED_ROWS];
};

/* Sets start and scale, and the digits of the rows. */
static void weigh_page(const struct asked * a, struct weigh_mem * m, struct weighed_page * w) {
    for (int r = 0; r < a->rows; r++) {
        const size_t  row = (size_t) (w->zone * a->rows + r), at = row * (size_t) a->stride;
        const int32_t sum =
            index_digits(m->q16 + at, m->q12 + at, &w->page, a->dims, m->digits + (size_t) r * a->stride);
        w->scale[r] = m->unit[row] * w->page.step_unit * (65536.0f / 32767);
        w->start[r] = m->unit[row] * w->page.lo_unit * (1.0f / PLONG_LO_MOST) * (float) sum;
    }
}

/* Which rotation of the queries gives their distance to the keys of a piece: never that for keys which must be rotated
 * before they are used. */
static int weigh_zone(const struct plong_call * c, int32_t map, int32_t pos, const struct plong_piece * piece) {
    const int z = plong_map_zone(&c->batch->rope, map, pos, piece->pos);
    return plong_map_unfolds(map, z) ? z + 1 : z;
}

static float weigh_logit(
    const struct plong_call * c, const struct plong_tile * tile, int h, int32_t distance, float x) {
    if (c->params.soft_cap > 0.0f) {
        const float cap = c->params.soft_cap * 1.44269504f;
        x               = cap * tanhf(x / cap);
    }
    if (c->params.max_bias > 0.0f) {
        x -= plong_alibi_slope(c->params.max_bias, c->n_head, tile->head + h) * 1.44269504f * (float) distance;
    }
    return x;
}

/* The largest sum of the keys beg .. end of a page. */
PLONG_INLINE int32_t weigh_most(const int32_t * sums, const int32_t * tops, int beg, int end) {
    const bool      whole = (beg | end) % 16 == 0;
    const int       step  = whole ? 16 : 1;
    const int32_t * x     = whole ? tops : sums;
    int32_t         most  = x[beg / step];
    for (int j = beg / step + 1; j < end / step; j++) {
        most = x[j] > most ? x[j] : most;
    }
    return most;
}

/* The sum of 2^(scale * (sum - most)) over n sums, at most a page. */
PLONG_INLINE float weigh_sum(const int32_t * sums, int n, int32_t most, float scale) {
    float x[PLONG_PAGE + VW];
    vf    total = vf_zero();
    for (int j = 0; j < n; j++) {
        x[j] = (float) (sums[j] - most) * scale;
    }
    vf_store(x + n, vf_set1(-INFINITY));
    for (int j = 0; j < n; j += VW) {
        total = vf_add(total, vf_exp2(vf_load(x + j)));
    }
    return vf_sum(total);
}

/* weights [n] += part times the softmax of a row over pieces, whose largest logits and sums relative to these are given, n
 * padded to 16 with -INFINITY and anything. */
static void weigh_softmax(float * logits, const float * sums, int32_t n, float part, float * weights) {
    vf top = vf_load(logits), sum = vf_zero();
    for (int32_t i = VW; i < n; i += VW) {
        top = vf_max(top, vf_load(logits + i));
    }
    const float most = vf_hmax(top);
    if (!(most > -INFINITY)) {
        return;
    }
    for (int32_t i = 0; i < n; i += VW) {
        const vf e = vf_mul(vf_exp2(vf_sub(vf_load(logits + i), vf_set1(most))), vf_load(sums + i));
        vf_store(logits + i, e);
        sum = vf_add(sum, e);
    }
    const vf f = vf_set1(part / vf_sum(sum));
    for (int32_t i = 0; i < n; i += VW) {
        vf_store(weights + i, vf_fma(vf_load(logits + i), f, vf_load(weights + i)));
    }
}

/* The asked rows of a tile, and the pieces that they weigh. */
struct weighing {
    const struct plong_call *  call;
    const struct plong_tile *  tile;
    const struct plong_piece * pieces;
    int32_t                    n;
    int32_t                    map;
    struct asked               asked;
    struct weigh_mem           mem;
};

/* The pages of the pieces that are left (all: NULL): visits [n]. Returns their number. */
static int32_t weigh_visits(const struct weighing * x, const uint8_t * left, struct visit * visits) {
    int32_t n = 0;
    for (int32_t i = 0, next; i < x->n; i = next) {
        const int32_t page = x->pieces[i].cell / PLONG_PAGE;
        const int     zone = weigh_zone(x->call, x->map, x->asked.pos[0], &x->pieces[i]);
        bool          any  = !left || left[i];
        for (next = i + 1; next < x->n && x->pieces[next].cell / PLONG_PAGE == page &&
                           weigh_zone(x->call, x->map, x->asked.pos[0], &x->pieces[next]) == zone;
             next++) {
            any |= !left || left[next];
        }
        if (any) {
            visits[n++] = (struct visit) { i, next, page, zone };
        }
    }
    return n;
}

/* The logits of a page's pieces: of their largest keys, and the sums of all keys relative to these. */
static void weigh_logits(
    const struct weighing * x, const struct visit * v, const struct weighed_page * w, int32_t padded) {
    const struct weigh_mem * m = &x->mem;
    for (int r = 0; r < x->asked.rows; r++) {
        const int32_t *sums = m->sums + r * PLONG_PAGE, *tops = m->tops + r * (PLONG_PAGE / 16);
        const int32_t  pos = x->asked.pos[r / x->asked.heads];
        for (int32_t j = v->beg; j < v->end; j++) {
            const size_t  at  = (size_t) r * padded + j;
            const int     beg = x->pieces[j].cell % PLONG_PAGE, end = beg + x->pieces[j].n;
            const int32_t most = weigh_most(sums, tops, beg, end);
            const float   top  = w->start[r] + w->scale[r] * (float) most;
            m->logits[at]      = weigh_logit(x->call, x->tile, r % x->asked.heads, pos - x->pieces[j].pos, top);
            m->parts[at]       = weigh_sum(sums + beg, end - beg, most, w->scale[r]);
        }
    }
}

/* The same by what the logits of a page's keys can be at most. */
static void weigh_bounds(
    const struct weighing * x, const struct visit * v, const struct weighed_page * w, int32_t padded) {
    const struct weigh_mem * m = &x->mem;
    for (int r = 0; r < x->asked.rows; r++) {
        const int32_t above = index_above(m->digits + (size_t) r * x->asked.stride, x->asked.dims);
        const int32_t apart = x->asked.pos[r / x->asked.heads] - x->pieces[v->beg].pos;
        const float   top   = w->start[r] + w->scale[r] * 15.0f * (float) above;
        const float   logit = weigh_logit(x->call, x->tile, r % x->asked.heads, apart, top);
        for (int32_t j = v->beg; j < v->end; j++) {
            m->logits[(size_t) r * padded + j] = logit;
        }
    }
}

/* Weighs the pieces that are left by their keys, or all of them (left: NULL) by the bounds of their pages if `rough`:
 * weights [n, padded to 16]. Others get 0. */
static void weigh_pieces(struct weighing * x, const uint8_t * left, bool rough, float * weights) {
    const struct asked *      a = &x->asked;
    const struct plong_call * c = x->call;
    struct weigh_mem *        m = &x->mem;
    const char *  base   = c->index + x->tile->stream * c->index_stream + x->tile->head / c->n_group * c->index_head;
    const int32_t padded = (x->n + 15) & ~15, n = weigh_visits(x, left, m->visits), far = rough ? WEIGH_FAR : 2;
    struct weighed_page w;
    for (int32_t j = 0; j < a->rows * padded; j++) {
        m->logits[j] = -INFINITY;
        m->parts[j]  = 1.0f;
    }
    for (int32_t i = 0; i < n; i++) {
        const struct visit * v     = &m->visits[i];
        const char *         ahead = base + m->visits[i + far < n ? i + far : n - 1].page * c->index_page;
        w.page                     = plong_page_at(base + v->page * c->index_page, c->d_k);
        w.zone                     = v->zone;
        prefetch_near(ahead + ((const char *) w.page.lo - (const char *) w.page.nibbles), 3 * (size_t) a->dims + 8);
        weigh_page(a, m, &w);
        if (rough) {
            weigh_bounds(x, v, &w, padded);
        } else {
            index_scores(
                w.page.nibbles, (const uint8_t *) ahead, a->quads,
                (struct index_rows) { m->digits, a->stride, a->rows }, (struct index_sums) { m->sums, m->tops });
            weigh_logits(x, v, &w, padded);
        }
    }
    memset(weights, 0, (size_t) padded * sizeof(float));
    for (int r = 0; r < a->rows; r++) {
        const size_t at = (size_t) r * padded;
        weigh_softmax(m->logits + at, m->parts + at, padded, 1.0f / (float) a->rows, weights);
    }
}

/* weights has room for n padded to 16. Of many pieces, bounds tell which are worth a closer look (Quest, arXiv
 * 2406.10774). */
static void weigh(
    const struct plong_call * c, const struct plong_tile * tile, const struct plong_piece * pieces, int32_t n,
    float * weights, void * scratch) {
    int32_t         tokens[PLONG_ASKED];
    struct weighing x = {
        .call   = c,
        .tile   = tile,
        .pieces = pieces,
        .n      = n,
        .map    = c->params.n_rot > 0 ? c->batch->rope.map : PLONG_MAP_ABSOLUTE,
    };
    struct asked * a = &x.asked;
    weigh_layout(&x.mem, (uintptr_t) scratch, c->d_k, tile->n_h, n, c->table != NULL);
    a->tokens = plong_asked(c, tile, tokens);
    a->heads  = tile->n_h;
    a->rows   = a->tokens * a->heads;
    a->zones  = plong_map_zones(x.map);
    a->quads  = plong_quads(c->d_k);
    a->dims   = plong_bounded(c->d_k);
    a->stride = weigh_stride(c->d_k);
    for (int t = 0; t < a->tokens; t++) {
        a->pos[t] = tile->pos + tokens[t];
    }
    weigh_queries(a, &x.mem, c, tile, x.map, tokens);
    const int32_t keep = plong_closer_look(c, tile, n);
    if (keep < n) {
        weigh_pieces(&x, NULL, true, weights);
        plong_best_pieces(weights, n, keep, x.mem.order, x.mem.left);
    }
    weigh_pieces(&x, keep < n ? x.mem.left : NULL, false, weights);
}

#endif
