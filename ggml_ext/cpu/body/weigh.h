/*
 * weigh.h - weighs the pieces from which a tile chooses its keys: logits of some of its rows against the 4-bit keys of the
 * index, page by page, in integers. A piece counts by its largest logit.
 *
 * The part of an instruction set before it (scores.h, or scores_plain.h) defines
 *
 *     index_digits(q16, q12, page, n, digits)
 *         digits [n] = q16 * step / 2^16, rounded, of n dims (a multiple of 32); returns the sum of q12 * lo
 *     index_scores(nibbles, ahead, quads, digits, stride, rows, sums, tops)
 *         sums [rows][PLONG_PAGE] int32: for each key of a page the sum of digit * nibble over all dims;
 *         tops [rows][PLONG_PAGE / 16]: the largest of each 16; digits [rows][stride] int8, up to 127
 *         ahead: as many bytes as there are nibbles, which are to be prefetched
 */
#ifndef PLONG_CPU_BODY_WEIGH_H
#define PLONG_CPU_BODY_WEIGH_H

#include "cpu/body/prefetch.h"
#include "cpu/body/zones.h"

#define WEIGH_ROWS 32 /* about as many rows of a tile are asked */

/* Queries of the rows that are asked, in integers. A query is q16 * unit / 2^15, and about q12 * unit / PLONG_LO_MOST. */
struct asked {
    int            tokens, heads, rows, zones; /* rows = tokens * heads */
    int            dims;                       /* padded to 32 */
    int            stride;                     /* padded to 64 */
    const int32_t * pos;                       /* [tokens] */
    const float *  unit;                       /* [zones][rows] */
    const int16_t * q16;                       /* [zones][rows][stride] */
    const int16_t * q12;
    float          slope[WEIGH_ROWS];          /* of ALiBi in base 2, by head */
};

/* Scratch of weigh(), laid out by weigh_layout(). */
struct weigh_mem {
    float *   q; /* [zones][heads][pad32(d)] of one token */
    float *   angles;
    float *   unit;
    int16_t * q16;
    int16_t * q12;
    int8_t *  digits; /* [rows][stride] of one page */
    int32_t * sums;   /* [rows][PLONG_PAGE] */
    int32_t * tops;   /* [rows][PLONG_PAGE / 16] */
    float *   logits; /* [rows][pieces, padded to 16] */
};

static int weigh_rows(int32_t heads) { return heads * PLONG_ASKED; }

static size_t weigh_layout(struct weigh_mem * m, uintptr_t base, int32_t d_k, int32_t heads, int64_t pieces, bool maps) {
    const size_t zones = maps ? PLONG_ZONES : 1, rows = (size_t) weigh_rows(heads), dk = (size_t) plong_pad32(d_k);
    const size_t stride = (dk + 63) & ~(size_t) 63, padded = ((size_t) pieces + 15) & ~(size_t) 15;
    uintptr_t    at     = base;
    m->q                = take_scratch(&at, zones * (size_t) heads * dk * sizeof(float));
    m->angles           = take_scratch(&at, PLONG_MAX_ROT * sizeof(float));
    m->unit             = take_scratch(&at, zones * rows * sizeof(float));
    m->q16              = take_scratch(&at, zones * rows * stride * sizeof(int16_t));
    m->q12              = take_scratch(&at, zones * rows * stride * sizeof(int16_t));
    m->digits           = take_scratch(&at, rows * stride);
    m->sums             = take_scratch(&at, rows * PLONG_PAGE * sizeof(int32_t));
    m->tops             = take_scratch(&at, rows * PLONG_PAGE / 16 * sizeof(int32_t));
    m->logits           = take_scratch(&at, rows * padded * sizeof(float));
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
        most          = x > most ? x : most;
    }
    most          = most < 1e30f ? most : 0.0f; /* a query without finite values asks for nothing */
    const float f = most > 0.0f ? 32767 / most : 0.0f, g = most > 0.0f ? PLONG_LO_MOST / most : 0.0f;
    for (int i = 0; i < stride; i++) {
        const float x = i < d && most > 0.0f ? q[i] : 0.0f;
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
                m->unit[row]     = weigh_digits(
                    m->q + (size_t) (z * a->heads + h) * dk, c->d_k, a->stride, m->q16 + at, m->q12 + at);
            }
        }
    }
}

/* What the rows of a zone are multiplied with for a page: digits [rows][stride], and the logit of a key whose nibbles are
 * 0: start [rows]; scale [rows]: of a sum of products. */
static void weigh_page(
    const struct asked * a, const struct plong_index_page * page, int zone, int8_t * digits, float * start,
    float * scale) {
    for (int r = 0; r < a->rows; r++) {
        const size_t    row = (size_t) (zone * a->rows + r), at = row * (size_t) a->stride;
        const int32_t sum = index_digits(a->q16 + at, a->q12 + at, page, a->dims, digits + (size_t) r * a->stride);
        start[r] = a->unit[row] * page->lo_unit / PLONG_LO_MOST * (float) sum;
        scale[r] = a->unit[row] * page->step_unit * (65536.0f / 32767);
    }
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

/* Which rotation of the queries gives their distance to the keys of a piece: never that for keys which must be rotated
 * before they are used. */
static int weigh_zone(const struct plong_call * c, int32_t map, int32_t pos, const struct plong_piece * piece) {
    const int z = plong_map_zone(&c->batch->rope, map, pos, piece->pos);
    return plong_map_unfolds(map, z) ? z + 1 : z;
}

static float weigh_logit(const struct plong_call * c, const struct asked * a, int row, int32_t distance, float x) {
    if (c->params.soft_cap > 0.0f) {
        const float cap = c->params.soft_cap * 1.44269504f;
        x               = cap * tanhf(x / cap);
    }
    return c->params.max_bias > 0.0f ? x - a->slope[row % a->heads % WEIGH_ROWS] * (float) distance : x;
}

/* weights [n] += the softmax of a row's logits [n, padded to 16 with -INFINITY] */
static void weigh_softmax(float * logits, int32_t n, float part, float * weights) {
    vf top = vf_load(logits), sum = vf_zero();
    for (int32_t i = VW; i < n; i += VW) {
        top = vf_max(top, vf_load(logits + i));
    }
    const float most = vf_hmax(top);
    if (!(most > -INFINITY)) {
        return;
    }
    for (int32_t i = 0; i < n; i += VW) {
        const vf e = vf_exp2(vf_sub(vf_load(logits + i), vf_set1(most)));
        vf_store(logits + i, e);
        sum = vf_add(sum, e);
    }
    const vf f = vf_set1(part / vf_sum(sum));
    for (int32_t i = 0; i < n; i += VW) {
        vf_store(weights + i, vf_fma(vf_load(logits + i), f, vf_load(weights + i)));
    }
}

/* weights has room for n padded to 16. */
static void weigh(
    const struct plong_call * c, const struct plong_tile * tile, const struct plong_piece * pieces, int32_t n,
    float * weights, void * scratch) {
    const int32_t    map = c->params.n_rot > 0 ? c->batch->rope.map : PLONG_MAP_ABSOLUTE;
    const int32_t    kv = tile->head / c->n_group, padded = (n + 15) & ~15;
    int32_t          tokens[PLONG_ASKED], pos[PLONG_ASKED];
    struct weigh_mem m;
    struct asked     a = { .tokens = plong_asked(c, tile, tokens), .heads = tile->n_h, .zones = plong_map_zones(map) };
    weigh_layout(&m, (uintptr_t) scratch, c->d_k, tile->n_h, n, c->table != NULL);
    a.rows   = a.tokens * a.heads;
    a.dims   = plong_pad32(c->d_k);
    a.stride = (plong_pad32(c->d_k) + 63) & ~63;
    a.pos    = pos;
    a.unit   = m.unit;
    a.q16    = m.q16;
    a.q12    = m.q12;
    for (int t = 0; t < a.tokens; t++) {
        pos[t] = tile->pos + tokens[t];
    }
    for (int h = 0; h < a.heads && h < WEIGH_ROWS; h++) {
        a.slope[h] = plong_alibi_slope(c->params.max_bias, c->n_head, tile->head + h) * 1.44269504f;
    }
    weigh_queries(&a, &m, c, tile, map, tokens);
    const char * const base = c->index + tile->stream * c->index_stream + kv * c->index_head;
    float * const start = m.q, *const scale = m.q + a.rows; /* the queries are not needed any more */
    for (int32_t i = 0, next; i < n; i = next) {
        const int32_t page = pieces[i].cell / PLONG_PAGE;
        const int     zone = weigh_zone(c, map, pos[0], &pieces[i]);
        for (next = i + 1; next < n && pieces[next].cell / PLONG_PAGE == page &&
                           weigh_zone(c, map, pos[0], &pieces[next]) == zone;) {
            next++;
        }
        const struct plong_index_page x = plong_page_at(base + page * c->index_page, c->d_k);
        const char * ahead = base + (next < n ? pieces[next].cell / PLONG_PAGE : page) * c->index_page;
        prefetch_near(ahead + ((const char *) x.lo - (const char *) x.nibbles), 3 * (size_t) a.dims + 8);
        weigh_page(&a, &x, zone, m.digits, start, scale);
        index_scores(x.nibbles, (const uint8_t *) ahead, plong_quads(c->d_k), m.digits, a.stride, a.rows, m.sums, m.tops);
        for (int r = 0; r < a.rows; r++) {
            for (int32_t j = i; j < next; j++) {
                const int     beg  = pieces[j].cell % PLONG_PAGE;
                const int32_t most = weigh_most(
                    m.sums + r * PLONG_PAGE, m.tops + r * (PLONG_PAGE / 16), beg, beg + pieces[j].n);
                m.logits[(size_t) r * padded + j] =
                    weigh_logit(c, &a, r, pos[r / a.heads] - pieces[j].pos, start[r] + scale[r] * (float) most);
            }
        }
    }
    memset(weights, 0, (size_t) padded * sizeof(float));
    for (int r = 0; r < a.rows; r++) {
        for (int32_t j = n; j < padded; j++) {
            m.logits[(size_t) r * padded + j] = -INFINITY;
        }
        weigh_softmax(m.logits + (size_t) r * padded, padded, 1.0f / (float) a.rows, weights);
    }
}

#endif
