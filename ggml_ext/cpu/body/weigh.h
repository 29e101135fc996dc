/*
 * weigh.h - weighs the pieces from which a tile chooses its keys: logits of some of its rows against the 4-bit keys of the
 * index, page by page, in integers. weigh_bounds.h and weigh_keys.h are its two steps.
 *
 * The part of an instruction set before it (scores.h, or scores_plain.h) defines
 *
 *     index_bounds(queries, pages, dims, out)
 *         struct index_bounds out of INDEX_PAGES pages, of dims (a multiple of 32)
 *     index_digits(queries, page, dims, digits, starts)
 *         digits [rows][stride] = q16 * step / 2^16, rounded; starts [rows]: the sum of q12 * lo
 *     index_scores(nibbles, ahead, quads, rows, out)
 *         struct index_sums out of struct index_rows against the nibbles of a page; ahead: as many bytes, which are to be
 *         prefetched
 */
#ifndef PLONG_CPU_BODY_WEIGH_H
#define PLONG_CPU_BODY_WEIGH_H

#include "cpu/body/index_rows.h"
#include "cpu/body/prefetch.h"
#include "cpu/body/zones.h"

/* The rows of a tile that are asked. */
struct asked {
    int     tokens, heads, rows, zones; /* rows = tokens * heads */
    int     quads;
    int     dims;             /* padded to 32 */
    int     stride;           /* padded to 64 */
    int32_t pos[PLONG_ASKED]; /* [tokens] */
};

/* Pieces beg .. end of one page, which have the same distance to the queries. whole: they are all of its keys, in
 * multiples of 16. */
struct visit {
    int32_t beg, end;
    int32_t page;
    int16_t zone, whole;
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
    int32_t *      tops;   /* [rows] */
    int32_t *      starts; /* [rows][INDEX_PAGES] */
    int32_t *      above;
    float *        start; /* [rows] of one page: the logit of a key whose nibbles are 0, and that of a sum of 1 */
    float *        scale;
    float *        most;   /* of a row's logits */
    float *        logits; /* [rows][visits or pieces, padded to 16] */
    float *        parts;  /* the same: sums of a piece's keys, relative to the largest */
    float *        shares; /* [visits or pieces, padded to 16] */
    int32_t *      order;  /* [visits or pieces] */
    uint8_t *      left;   /* [visits] */
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
    m->tops         = take_scratch(&at, rows * sizeof(int32_t));
    m->starts       = take_scratch(&at, rows * INDEX_PAGES * sizeof(int32_t));
    m->above        = take_scratch(&at, rows * INDEX_PAGES * sizeof(int32_t));
    m->start        = take_scratch(&at, rows * sizeof(float));
    m->scale        = take_scratch(&at, rows * sizeof(float));
    m->most         = take_scratch(&at, rows * sizeof(float));
    m->logits       = take_scratch(&at, rows * padded * sizeof(float));
    m->parts        = take_scratch(&at, rows * padded * sizeof(float));
    m->shares       = take_scratch(&at, padded * sizeof(float));
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

/* Which rotation of the queries gives their distance to the keys of a piece: never that for keys which must be rotated
 * before they are used. */
static int weigh_zone(const struct plong_call * c, int32_t map, int32_t pos, const struct plong_piece * piece) {
    const int z = plong_map_zone(&c->batch->rope, map, pos, piece->pos);
    return plong_map_unfolds(map, z) ? z + 1 : z;
}

/* The asked rows of a tile, and the pieces that they weigh. */
struct weighing {
    const struct plong_call *  call;
    const struct plong_tile *  tile;
    const struct plong_piece * pieces;
    int32_t                    n;
    int32_t                    map;
    struct plong_index_head    index; /* of the tile's kv head */
    struct asked               asked;
    struct weigh_mem           mem;
};

static struct index_queries weigh_rows(const struct weighing * x, int zone) {
    const size_t at = (size_t) zone * x->asked.rows * x->asked.stride;
    return (struct index_queries) { x->mem.q16 + at, x->mem.q12 + at, x->asked.stride, x->asked.rows };
}

/* Prefetches the bounds of a page. */
PLONG_INLINE void weigh_fetch(const struct weighing * x, const struct visit * v) {
    prefetch_near(x->index.bounds + (size_t) v->page * x->index.bound_bytes, x->index.bound_bytes);
}

/* Whether logits are more than products. */
static bool weigh_bends(const struct plong_call * c) { return c->params.soft_cap > 0.0f || c->params.max_bias > 0.0f; }

/* The logit of row r for keys at pos, whose product with it is x. */
static float weigh_logit(const struct weighing * w, int r, int32_t pos, float x) {
    const struct plong_call * c    = w->call;
    const int                 head = w->tile->head + r % w->asked.heads, t = r / w->asked.heads;
    if (c->params.soft_cap > 0.0f) {
        const float cap = c->params.soft_cap * 1.44269504f;
        x               = cap * tanhf(x / cap);
    }
    if (c->params.max_bias > 0.0f) {
        x -= plong_alibi_slope(c->params.max_bias, c->n_head, head) * 1.44269504f * (float) (w->asked.pos[t] - pos);
    }
    return x;
}

/* shares [n] = the softmax of each row over n things, as a mean over the rows: logits and parts [rows][n], padded to 16;
 * 2^logit is multiplied by its part, if `parts`. The logits of a row become 2^(logit - most), times its part. */
static void weigh_softmax(const struct weighing * x, int32_t n, bool parts) {
    const struct weigh_mem * m      = &x->mem;
    const int32_t            padded = (n + 15) & ~15;
    memset(m->shares, 0, (size_t) padded * sizeof(float));
    for (int r = 0; r < x->asked.rows; r++) {
        float *logits = m->logits + (size_t) r * padded, *part = m->parts + (size_t) r * padded;
        for (int32_t i = n; i < padded; i++) {
            logits[i] = -INFINITY;
            part[i]   = 0.0f;
        }
        vf top = vf_load(logits), sum = vf_zero();
        for (int32_t i = VW; i < padded; i += VW) {
            top = vf_max(top, vf_load(logits + i));
        }
        const float most = vf_hmax(top);
        m->most[r]       = most;
        if (!(most > -INFINITY)) {
            memset(logits, 0, (size_t) padded * sizeof(float));
            continue;
        }
        for (int32_t i = 0; i < padded; i += VW) {
            vf e = vf_exp2(vf_sub(vf_load(logits + i), vf_set1(most)));
            e    = parts ? vf_mul(e, vf_load(part + i)) : e;
            vf_store(logits + i, e);
            sum = vf_add(sum, e);
        }
        const vf f = vf_set1(1.0f / ((float) x->asked.rows * vf_sum(sum)));
        for (int32_t i = 0; i < padded; i += VW) {
            vf_store(m->shares + i, vf_fma(vf_load(logits + i), f, vf_load(m->shares + i)));
        }
    }
}

#include "cpu/body/weigh_bounds.h"
#include "cpu/body/weigh_keys.h"

/* The pages of the pieces: visits [n]. Returns their number. */
static int32_t weigh_visits(const struct weighing * x, struct visit * visits) {
    const struct plong_piece * p = x->pieces;
    int32_t                    n = 0;
    for (int32_t i = 0, next; i < x->n; i = next) {
        const uint32_t page = (uint32_t) p[i].cell / PLONG_PAGE;
        const int      zone = weigh_zone(x->call, x->map, x->asked.pos[0], &p[i]);
        bool           even = (p[i].cell % PLONG_PAGE | p[i].n % 16) == 0;
        int32_t        end  = p[i].cell + p[i].n;
        for (next = i + 1; next < x->n && (uint32_t) p[next].cell / PLONG_PAGE == page &&
                           weigh_zone(x->call, x->map, x->asked.pos[0], &p[next]) == zone;
             next++) {
            even &= p[next].cell == end && p[next].n % 16 == 0;
            end = p[next].cell + p[next].n;
        }
        even &= end % PLONG_PAGE == 0;
        visits[n++] = (struct visit) { i, next, (int32_t) page, (int16_t) zone, even };
    }
    return n;
}

/* Keeps the pages that are worth a closer look: those whose keys can have the largest shares (Quest, arXiv 2406.10774).
 * Returns their number. */
static int32_t weigh_worthy(struct weighing * x, int32_t n_visits, int32_t pieces) {
    struct weigh_mem * m    = &x->mem;
    const int32_t      keep = (int32_t) (((int64_t) pieces * n_visits + x->n - 1) / x->n);
    int32_t            n    = 0;
    weigh_bounds(x, n_visits);
    weigh_softmax(x, n_visits, false);
    plong_best(m->shares, n_visits, keep, m->order, m->left);
    for (int32_t i = 0; i < n_visits; i++) {
        m->visits[n] = m->visits[i];
        n += m->left[i];
    }
    return n;
}

static struct plong_terms weigh(
    const struct plong_call * c, const struct plong_tile * tile, const struct plong_piece * pieces, int32_t n,
    float * weights, void * scratch) {
    int32_t         tokens[PLONG_ASKED];
    struct weighing x = {
        .call   = c,
        .tile   = tile,
        .pieces = pieces,
        .n      = n,
        .map    = c->params.n_rot > 0 ? c->batch->rope.map : PLONG_MAP_ABSOLUTE,
        .index  = plong_index_of(c, tile->stream, tile->head / c->n_group),
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
    const int32_t keep     = plong_closer_look(c, tile, n);
    int32_t       n_visits = weigh_visits(&x, x.mem.visits);
    if (keep < n) {
        n_visits = weigh_worthy(&x, n_visits, keep);
    }
    const int32_t n_weighed = weigh_keys(&x, n_visits);
    weigh_softmax(&x, n_weighed, true);
    memset(weights, 0, (size_t) n * sizeof(float));
    for (int32_t i = 0; i < n_weighed; i++) {
        weights[x.mem.order[i]] = x.mem.shares[i];
    }
    /* if all are weighed, they are in order */
    return (struct plong_terms) { x.mem.logits, x.mem.most, n_weighed == n ? (n + 15) & ~15 : 0 };
}

#endif
