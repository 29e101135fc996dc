/* verify.c - a base sample of a tile's keys, the pieces that stand out, and the size of its sample. */
#include "verify.h"

#include <math.h>
#include <string.h>

#include "ggml.h"
#include "position_map.h"
#include "rotate.h"

#define BASE  256 /* keys of a base sample, and the fewest of a sample */
#define STEPS 8   /* sizes of samples are multiples of the power of two below them, divided by this */
#define PRICE 2   /* keys of a piece that cost as much as one of a sample */
#define NOISE 2   /* standard deviations that the sum of a piece of ordinary keys has at most beyond the mean */
#define LOG2E 1.44269504f

/* What is known of a row. Sums are relative to 2^top. */
struct row {
    double top;
    double exact;                      /* of keys that are read exactly */
    double pieces, mean;               /* the other pieces' terms by the index: their sum, and a key's mean */
    double sum, square, trace, length; /* of the base sample: terms, their squares, these times the squared norms
                                               of their values, and the largest squared norm */
    double largest;                    /* of its terms */
    double variance;                   /* of its terms */
    double denominator, numerator;     /* estimates: the sum, and the squared norm, 0 if there is no telling */
    double noise;                      /* of the numerator: n^2 times the trace of the covariance of its terms */
};

struct verifying {
    const struct plong_call *      call;
    const struct plong_tile *      tile;
    const struct plong_piece *     pieces;
    int32_t                        n, rows;
    const struct plong_verifying * by;
    double                         z2;     /* (z / eps)^2 */
    int64_t                        n_keys; /* of pieces that are not chosen, */
    int64_t                        n_all;  /* and when it began */
    int32_t                        n_base; /* of the base sample, those in such pieces */
    int64_t                        shift;  /* for which the queries are turned */
    float *                        q;      /* [rows][d_k] times scale and log-n, in base 2, not rotated further */
    float *                        turned; /* the same, rotated for some keys */
    float *                        key;    /* [d_k, padded] */
    float *                        logits; /* [rows][BASE] of the base sample */
    float *                        values; /* [BASE][d_v, padded] */
    float *                        norms;  /* [BASE] squared */
    float *                        far;    /* [d_v] */
    int32_t *                      of;     /* [BASE] pieces of its keys */
    int32_t *                      fresh;  /* [n_fresh] pieces that were chosen last */
    int32_t                        n_fresh;
    uint8_t *                      chosen; /* [n] */
    struct row *                   row;    /* [rows] */
};

#define NO_SHIFT INT64_MIN

static void * take(char ** at, size_t size) {
    void * part = *at;
    *at += (size + 63) & ~(size_t) 63;
    return part;
}

/* What a backend writes for a row of d values: PLONG_ROW_PAD. */
static int32_t padded(int32_t d) { return (d + PLONG_ROW_PAD - 1) & -PLONG_ROW_PAD; }

static size_t layout(struct verifying * x, char * base, int32_t d_k, int32_t d_v, int32_t rows, int64_t pieces) {
    const size_t k = (size_t) padded(d_k) * sizeof(float), v = (size_t) padded(d_v) * sizeof(float), r = (size_t) rows;
    char *       at = base;
    x->q            = take(&at, r * k);
    x->turned       = take(&at, r * k);
    x->key          = take(&at, k);
    x->logits       = take(&at, r * BASE * sizeof(float));
    x->values       = take(&at, BASE * v);
    x->norms        = take(&at, BASE * sizeof(float));
    x->far          = take(&at, v);
    x->of           = take(&at, BASE * sizeof(int32_t));
    x->fresh        = take(&at, (size_t) pieces * sizeof(int32_t));
    x->chosen       = take(&at, (size_t) pieces);
    x->row          = take(&at, r * sizeof(struct row));
    return (size_t) (at - base);
}

size_t plong_verify_scratch(int32_t d_k, int32_t d_v, int32_t rows, int64_t pieces) {
    struct verifying x;
    return layout(&x, (char *) 0, d_k, d_v, rows, pieces);
}

bool plong_verify_few(const struct plong_piece * pieces, int32_t n) {
    int64_t keys = 0;
    for (int32_t i = 0; i < n; i++) {
        keys += pieces[i].n;
    }
    return keys < PLONG_VERIFY_LEAST;
}

/* ---- logits --------------------------------------------------------------------------------------------------- */

/* Head sizes are multiples of 4; four sums at a time are a vector. */
static float dot(const float * a, const float * b, int32_t n) {
    float s[4] = { 0 }, t[4] = { 0 };
    for (int32_t i = 0; i + 8 <= n; i += 8) {
        for (int32_t j = 0; j < 4; j++) {
            s[j] += a[i + j] * b[i + j];
            t[j] += a[i + 4 + j] * b[i + 4 + j];
        }
    }
    for (int32_t j = 0; j < n % 8; j++) {
        s[j] += a[n / 8 * 8 + j] * b[n / 8 * 8 + j];
    }
    return ((s[0] + t[0]) + (s[1] + t[1])) + ((s[2] + t[2]) + (s[3] + t[3]));
}

static void load_queries(struct verifying * x) {
    const struct plong_call * c     = x->call;
    const float               scale = c->params.scale * plong_rope_logn(&c->batch->rope, x->tile->pos) * LOG2E;
    x->shift                        = NO_SHIFT;
    for (int32_t r = 0; r < x->rows; r++) {
        float *      q    = x->q + (size_t) r * c->d_k;
        const char * from = c->q + (size_t) x->tile->tok * c->q_tok + (size_t) (x->tile->head + r) * c->q_head;
        memcpy(q, from, (size_t) c->d_k * sizeof(float));
        for (int32_t d = 0; d < c->d_k; d++) {
            q[d] *= scale;
        }
    }
}

/* Rotates the queries to the distance that they have to the key at position t. */
static void turn(struct verifying * x, int32_t t) {
    const struct plong_call * c   = x->call;
    const int32_t             map = c->params.n_rot > 0 ? c->batch->rope.map : PLONG_MAP_ABSOLUTE, p = x->tile->pos;
    const int64_t now = (int64_t) plong_map_stored(&c->batch->rope, map, p) - plong_map_stored(&c->batch->rope, map, t);
    const int64_t shift = map == PLONG_MAP_ABSOLUTE ? 0 : plong_rope_distance(&c->batch->rope, p, t) - now;
    float         angles[PLONG_MAX_ROT];
    if (shift == x->shift) {
        return;
    }
    x->shift = shift;
    memcpy(x->turned, x->q, (size_t) x->rows * c->d_k * sizeof(float));
    if (map != PLONG_MAP_ABSOLUTE) {
        plong_rope_angles(c->table, c->params.n_rot, &shift, 1, angles);
    }
    for (int32_t r = 0; r < x->rows; r++) {
        float * q = x->turned + (size_t) r * c->d_k;
        if (map != PLONG_MAP_ABSOLUTE) {
            row_rotate(q + c->params.rot_first, angles, c->params.n_rot, c->params.neox);
        }
        if (c->params.hadamard) {
            row_hadamard(q, c->d_k, c->params.hadamard);
        }
    }
}

/* The logit of a row for x->key, which is at position t, in base 2. */
static float logit(const struct verifying * x, int32_t r, int32_t t) {
    const struct plong_call * c = x->call;
    float                     y = dot(x->turned + (size_t) r * c->d_k, x->key, c->d_k);
    if (c->params.soft_cap > 0.0f) {
        const float cap = c->params.soft_cap * LOG2E;
        y               = cap * tanhf(y / cap);
    }
    if (c->params.max_bias > 0.0f) {
        y -= plong_alibi_slope(c->params.max_bias, c->n_head, x->tile->head + r) * LOG2E * (float) (x->tile->pos - t);
    }
    return y;
}

/* Draws the base sample. */
static void draw(struct verifying * x, const struct plong_rest * rest) {
    const struct plong_call * c      = x->call;
    const int32_t             kv     = x->tile->head / c->n_group;
    const char *              k      = c->k + x->tile->stream * c->k_stream + kv * c->k_head;
    const char *              v      = c->v + x->tile->stream * c->v_stream + kv * c->v_head;
    struct plong_strata       strata = plong_strata_of(rest, BASE, ~plong_sample_place(c, x->tile));
    for (int32_t j = 0; plong_strata_next(&strata); j++) {
        float * value = x->values + (size_t) j * padded(c->d_v);
        x->by->to_f32(c->k_type, k + (size_t) strata.cell * c->k_cell, x->key, c->d_k);
        x->by->to_f32(c->v_type, v + (size_t) strata.cell * c->v_cell, value, c->d_v);
        x->norms[j] = dot(value, value, c->d_v);
        x->of[j]    = strata.piece;
        turn(x, strata.pos);
        for (int32_t r = 0; r < x->rows; r++) {
            x->logits[r * BASE + j] = logit(x, r, strata.pos);
        }
    }
}

/* ---- sums ----------------------------------------------------------------------------------------------------- */

/* Sets what all sums of a row are relative to. */
static void set_top(struct verifying * x, int32_t r) {
    float top = fmaxf(x->by->exact.state.m[r], x->by->terms.top[r]);
    for (int32_t j = 0; j < BASE; j++) {
        const float y = x->logits[r * BASE + j];
        top           = y > top ? y : top; /* fmax here is too much for gcc 12 on Arm */
    }
    x->row[r].top = (double) top;
}

/* A row's sums over keys that are read exactly, and over the others by the index. */
static void sum_pieces(struct verifying * x, int32_t r) {
    const struct plong_softmax * s     = &x->by->exact.state;
    const float *                terms = x->by->terms.terms + (size_t) r * x->by->terms.stride;
    struct row *                 row   = &x->row[r];
    double                       sum   = 0;
    for (int32_t i = 0; i < x->n; i++) {
        sum += x->chosen[i] ? 0.0 : (double) terms[i];
    }
    row->exact  = (double) s->l[r] * exp2((double) s->m[r] - row->top);
    row->pieces = sum * exp2((double) x->by->terms.top[r] - row->top);
    row->mean   = row->pieces / (double) x->n_keys;
}

/* A row's sums over the base sample, and the estimates that follow. */
static void sum_base(struct verifying * x, int32_t r) {
    const struct plong_softmax * s     = &x->by->exact.state;
    const float *                exact = s->acc + (size_t) r * x->by->exact.stride;
    const int32_t                d_v   = x->call->d_v;
    const double                 n = (double) x->n_keys, b = x->n_base, by = n / b;
    struct row *                 row = &x->row[r];
    row->sum = row->square = row->trace = row->length = row->largest = 0;
    memset(x->far, 0, (size_t) d_v * sizeof(float));
    for (int32_t j = 0; j < BASE; j++) {
        if (x->chosen[x->of[j]]) {
            continue;
        }
        const float * value = x->values + (size_t) j * padded(d_v);
        const double  w = exp2((double) x->logits[r * BASE + j] - row->top), norm = (double) x->norms[j];
        const float   f = (float) w;
        row->sum += w;
        row->square += w * w;
        row->trace += w * w * norm;
        row->largest = fmax(row->largest, w);
        row->length  = fmax(row->length, norm);
        for (int32_t d = 0; d < d_v; d++) {
            x->far[d] += f * value[d];
        }
    }
    const double scale = exp2((double) s->m[r] - row->top);
    double       far = 0, whole = 0;
    for (int32_t d = 0; d < d_v; d++) {
        const double f = by * (double) x->far[d], e = scale * (double) exact[d];
        far += f * f;
        whole += (e + f) * (e + f);
    }
    row->variance    = (row->square - row->sum * row->sum / b) / (b - 1);
    row->noise       = n * n * (row->trace - far / (by * by) / b) / (b - 1);
    row->denominator = row->exact + by * row->sum;
    row->numerator   = row->noise / b < 0.75 * whole ? whole - row->noise / b : 0; /* without what noise adds */
}

/* ---- pieces and sizes ----------------------------------------------------------------------------------------- */

/* Marks the pieces of which reading all keys costs less than the strata that a row's terms would ask for. worth: strata, per
 * key that is left, that a term of 1 asks for. */
static void mark(struct verifying * x, int32_t r, double worth) {
    const float *      terms = x->by->terms.terms + (size_t) r * x->by->terms.stride;
    const struct row * row   = &x->row[r];
    const double unit = exp2((double) x->by->terms.top[r] - row->top), strata = worth * (double) x->n_keys * PRICE;
    for (int32_t i = 0; i < x->n; i++) {
        const double n = x->pieces[i].n, more = (double) terms[i] * unit - n * row->mean;
        x->chosen[i] |= more > 0 && more * more * strata > n ? 2 : 0;
    }
}

/* Chooses the pieces that were marked, fresh [n_fresh]. False: too many for a sample to save anything. */
static bool choose_marked(struct verifying * x) {
    x->n_fresh = 0;
    for (int32_t i = 0; i < x->n; i++) {
        if (x->chosen[i] == 2) {
            x->fresh[x->n_fresh++] = i;
            x->n_keys -= x->pieces[i].n;
        }
        x->chosen[i] = x->chosen[i] != 0;
    }
    x->n_base = 0;
    for (int32_t j = 0; j < BASE; j++) {
        x->n_base += !x->chosen[x->of[j]];
    }
    return x->n_base >= BASE / 2 && 4 * x->n_keys >= 3 * x->n_all;
}

/* Adds them to what is read exactly. */
static void add_chosen(struct verifying * x) {
    if (x->n_fresh > 0) {
        x->by->exact.add(x->by->exact.self, x->pieces, x->fresh, x->n_fresh);
    }
}

/* Whether a row would need far too many strata in spite of the pieces that were chosen last, by the sums that were estimated
 * without them: then these need not be read to find out. */
static bool hopeless(struct verifying * x, int32_t r) {
    struct row * row = &x->row[r];
    const double num = row->numerator, den = row->denominator * row->denominator, n = (double) x->n_keys;
    sum_base(x, r);
    return !(x->z2 * fmax(row->noise / num, n * n * row->variance / den) <= 2.0 * plong_verify_most(x->n_keys));
}

/* The squares of a row's terms that the base sample has not seen. */
static double row_tail(const struct verifying * x, int32_t r) {
    const float *      terms = x->by->terms.terms + (size_t) r * x->by->terms.stride;
    const struct row * row   = &x->row[r];
    const double       unit  = exp2((double) x->by->terms.top[r] - row->top);
    double             tail  = 0;
    for (int32_t i = 0; i < x->n; i++) {
        const double n    = x->pieces[i].n;
        const double more = (double) terms[i] * unit - n * row->mean - NOISE * sqrt(n * row->variance);
        tail += !x->chosen[i] && more > row->largest ? more * more : 0;
    }
    return tail;
}

/* The strata that a row needs; not a number, or infinitely many, where there is no telling. */
static double row_size(const struct verifying * x, int32_t r) {
    const struct row * row = &x->row[r];
    const double       n = (double) x->n_keys, tail = row_tail(x, r);
    const double       den = n * (n * row->variance + tail) / (row->denominator * row->denominator);
    const double       num = (row->noise + n * tail * row->length) / row->numerator;
    return row->numerator > 0 ? x->z2 * fmax(den, num) : HUGE_VAL;
}

/* Strata, rounded up so that the same number follows in spite of rounding. */
static int32_t rounded(double size) {
    int32_t n = (int32_t) ceil(size), step = 1;
    while (2 * STEPS * step <= n) {
        step *= 2;
    }
    return (n + step - 1) / step * step;
}

static int32_t all_pieces(int32_t n, int32_t * chosen, int32_t * n_chosen) {
    for (int32_t i = 0; i < n; i++) {
        chosen[i] = i;
    }
    *n_chosen = n;
    return 0;
}

/* The strata that a row needs, after pieces that stand out were chosen; more than there are keys where all are to be
 * read. */
static double wanted(struct verifying * x) {
    double size = BASE;
    for (int32_t r = 0; r < x->rows; r++) {
        set_top(x, r);
        sum_pieces(x, r);
        const double all = x->row[r].exact + x->row[r].pieces;
        mark(x, r, x->z2 / (all * all));
    }
    if (!choose_marked(x)) {
        return HUGE_VAL;
    }
    add_chosen(x);
    for (int32_t r = 0; r < x->rows; r++) {
        sum_pieces(x, r);
        sum_base(x, r);
        mark(x, r, x->z2 * x->row[r].length / x->row[r].numerator);
    }
    if (!choose_marked(x)) {
        return HUGE_VAL;
    }
    for (int32_t r = 0; r < x->rows; r++) {
        if (hopeless(x, r)) {
            return HUGE_VAL;
        }
    }
    add_chosen(x);
    for (int32_t r = 0; r < x->rows; r++) {
        sum_pieces(x, r);
        sum_base(x, r);
        const double of = row_size(x, r);
        if (!(of < HUGE_VAL)) { /* or no number */
            return HUGE_VAL;
        }
        size = fmax(size, of);
    }
    return size;
}

int32_t plong_verify(
    const struct plong_call * c, const struct plong_tile * tile, const struct plong_piece * pieces, int32_t n,
    int32_t * chosen, int32_t * n_chosen, struct plong_verifying * v) {
    const struct plong_phase * ph   = plong_batch_phase(c->batch, tile->phase);
    struct plong_rest          rest = { .pieces = pieces, .n = n, .chosen = chosen, .n_chosen = *n_chosen };
    struct verifying           x    = { .call = c, .tile = tile, .pieces = pieces, .n = n, .rows = tile->n_h, .by = v };
    rest.n_keys = x.n_keys = x.n_all = plong_rest_keys(&rest);
    if (!v || rest.n_keys < PLONG_VERIFY_LEAST || v->terms.stride == 0) {
        return all_pieces(n, chosen, n_chosen);
    }
    GGML_ASSERT(tile->n_tok == 1);
    layout(&x, v->scratch, c->d_k, c->d_v, x.rows, n);
    memset(x.chosen, 0, (size_t) n);
    for (int32_t i = 0; i < *n_chosen; i++) {
        x.chosen[chosen[i]] = 1;
    }
    x.z2 = plong_phase_precision(ph);
    v->exact.add(v->exact.self, pieces, chosen, *n_chosen);
    load_queries(&x);
    draw(&x, &rest);
    const double size = wanted(&x), added = (double) (rest.n_keys - x.n_keys);
    if (!(size <= plong_verify_most(x.n_keys) && added + PRICE * size <= (double) rest.n_keys / 2)) {
        return all_pieces(n, chosen, n_chosen);
    }
    *n_chosen = 0;
    for (int32_t i = 0; i < n; i++) {
        chosen[*n_chosen] = i;
        *n_chosen += x.chosen[i];
    }
    const int32_t strata = rounded(size), most = (int32_t) plong_verify_most(x.n_keys);
    return strata < most ? strata : most;
}
