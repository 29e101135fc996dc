/*
 * jobs.h - the part of a tile's work that one kind of range makes: which of its rows read the range, and of its keys
 * which. Set parts (sinks, window, ...) are read by all rows; a dilated branch only by those that take part in it, and
 * these are gathered, so that nothing is computed for the others.
 */
#ifndef PLONG_CPU_BODY_JOBS_H
#define PLONG_CPU_BODY_JOBS_H

#include "cpu/body/keys.h"

/* What `rows` rows of a job, one after the other, have in common. */
struct sub {
    int32_t p0, p1;         /* positions of the first and the last */
    int32_t lo_min, lo_max; /* of job.lo */
    int32_t hi_min, hi_max;
};

/* Nested branches whose keys count as often as they are read (PLONG_WEIGHT_COUNT): what the branches behind the job's own,
 * up to `top`, add for keys at positions t with t % rate == place % rate, of rows that take part in all of these. */
struct count {
    int     top;
    int32_t place;
};

#define MAX_COUNTS (PLONG_CLASSES * PLONG_MAX_BRANCHES)

/* Row i reads key t when lo[i] <= t <= hi[i], or when t <= hi[i] and t < sinks_end. */
struct job {
    int          branch; /* -1: set parts */
    int          offset;
    int32_t      tok;      /* of the tile's tokens, the first */
    int          n;        /* rows */
    int          sub_rows; /* rows per sub */
    int          n_sub;
    bool         narrow;
    int32_t      sinks_end; /* 0 for the keys of a window range */
    bool         checks;    /* the keys of earlier branches must be left out one by one */
    int          n_counts;
    struct count counts[MAX_COUNTS];
    float        weight; /* log2 of what each key counts */
    int32_t *    row;    /* [n] of the tile */
    int32_t *    pos;    /* [n] */
    int32_t *    lo;     /* [n] */
    int32_t *    hi;     /* [n] */
    int32_t *    count;  /* [n] index into counts, -1: all keys count once */
    struct sub * subs;   /* [n_sub] */
};

enum cover { COVER_NONE, COVER_SOME, COVER_ALL };

static inline int32_t row_head(const struct plong_call * call, const struct plong_tile * tile, int32_t row) {
    return tile->head0 + row / (tile->n_tok * tile->n_h) * call->n_group + row % tile->n_h;
}

static void set_bounds(const struct plong_phase * ph, int32_t head, int32_t p, int32_t * lo, int32_t * hi) {
    const int64_t first = (int64_t) p - ph->window + 1;
    *lo                 = p < ph->dense_below || first < head ? head : (int32_t) first;
    *hi                 = p;
}

/* Of a branch: what no set part reads, and no finer branch in which the row takes part owns: in all of them if they nest. */
static void branch_bounds(
    const struct plong_phase * ph, bool nests, int k, int32_t p, int32_t h, int32_t * lo, int32_t * hi) {
    const int32_t head = plong_sinks_end(ph);
    const int64_t last = (int64_t) p - ph->window;
    *lo                = plong_branch_begin(ph, k, p);
    *lo                = *lo < head ? head : *lo;
    *hi                = p < ph->dense_below || last < 0 ? -1 : (int32_t) last;
    for (int i = 0; i < k && (nests || ph->weight == PLONG_WEIGHT_STRIDE); i++) {
        if (nests || plong_branch_joins(ph, i, p, h)) {
            const int32_t owned = plong_branch_begin(ph, i, p) - 1;
            *hi                 = *hi < owned ? *hi : owned;
        }
    }
}

/* Which of the job's counts is added to the keys of a row that takes part in the branches up to `top`; -1: none. place:
 * of the row's lattices. */
static int row_count(struct job * job, const struct plong_phase * ph, int top, int32_t place) {
    if (top == job->branch) {
        return -1;
    }
    place %= ph->rate[top];
    for (int i = 0; i < job->n_counts; i++) {
        if (job->counts[i].top == top && job->counts[i].place == place) {
            return i;
        }
    }
    GGML_ASSERT(job->n_counts < MAX_COUNTS);
    job->counts[job->n_counts] = (struct count) { top, place };
    return job->n_counts++;
}

/* log2 of how often keys count for rows of one of the job's counts: x [n], zeros up to a multiple of 32: what
 * logits are padded to at most. */
static void count_weights(
    const struct job * job, const struct plong_phase * ph, int i, const int32_t * t, int n, float * x) {
    const struct count c = job->counts[i];
    int32_t            times[PLONG_KEYS];
    float              log[PLONG_MAX_BRANCHES + 1];
    for (int j = 0; j < n; j++) {
        times[j] = 1;
    }
    for (int k = job->branch + 1; k <= c.top; k++) {
        const int32_t r = ph->rate[k], place = c.place % r;
        if ((r & (r - 1)) == 0) {
            for (int j = 0; j < n; j++) {
                times[j] += ((t[j] ^ place) & (r - 1)) == 0;
            }
        } else {
            for (int j = 0; j < n; j++) {
                times[j] += t[j] % r == place;
            }
        }
    }
    for (int k = 1; k <= c.top - job->branch + 1; k++) {
        log[k] = log2f((float) k);
    }
    for (int j = 0; j < n; j++) {
        x[j] = log[times[j]];
    }
    memset(x + n, 0, (size_t) (-n & 31) * sizeof(float));
}

/* Keys before it are read by all rows. */
static inline int32_t job_sinks_end(const struct plong_phase * ph, int branch) {
    return branch >= 0 ? 0 : plong_sinks_end(ph);
}

static void add_row(struct job * job, int32_t row, int32_t p, int32_t lo, int32_t hi, int count) {
    const int i   = job->n++;
    job->row[i]   = row;
    job->pos[i]   = p;
    job->lo[i]    = lo;
    job->hi[i]    = hi;
    job->count[i] = count;
}

static void set_rows(struct job * job, const struct plong_tile * tile, const struct tile_range * range) {
    for (int32_t kv = 0; kv < tile->n_kv; kv++) {
        for (int32_t tok = range->tok; tok < range->tok_end; tok++) {
            int32_t lo, hi;
            set_bounds(tile->phase, job->sinks_end, tile->pos + tok, &lo, &hi);
            for (int32_t h = 0; h < tile->n_h; h++) {
                add_row(job, (kv * tile->n_tok + tok) * tile->n_h + h, tile->pos + tok, lo, hi, -1);
            }
        }
    }
}

/* The rows of the branch's heads, all of which take part in it at the same positions. A tile crosses no segment's end. */
static void branch_rows(
    struct job * job, const struct plong_call * call, const struct plong_tile * tile, const struct tile_range * range) {
    const struct plong_phase * ph    = tile->phase;
    const bool                 nests = plong_phase_nests(ph), counts = nests && ph->weight == PLONG_WEIGHT_COUNT;
    const bool                 segment = ph->align == PLONG_ALIGN_SEGMENT;
    const int                  k       = job->branch;
    const int32_t              r       = ph->rate[k];
    int32_t                    tok     = range->tok, number[PLONG_CLASSES];
    for (int32_t h = 0; h < tile->n_h; h++) {
        number[h] = plong_call_number(call, tile->head0 + h);
    }
    if (segment) {
        const int32_t at = (tile->pos + tok - plong_branch_begin(ph, k, tile->pos)) % r;
        tok += (range->offset - at + r) % r;
    }
    for (; tok < range->tok_end; tok += segment ? r : 1) {
        const int32_t p     = tile->pos + tok;
        bool          known = false; /* lo and hi; they hang on the head where branches don't nest */
        int32_t       lo = 0, hi = 0;
        for (int32_t h = 0; h < tile->n_h; h++) {
            if (number[h] % r == range->offset) {
                int count = -1;
                if (!known) {
                    branch_bounds(ph, nests, k, p, number[h], &lo, &hi);
                    known = nests;
                }
                if (counts) {
                    count = row_count(job, ph, plong_branch_top(ph, k, p, number[h]), segment ? p : number[h]);
                }
                add_row(job, tok * tile->n_h + h, p, lo, hi, count);
            }
        }
    }
}

static void job_begin(
    struct job * job, const struct plong_call * call, const struct plong_tile * tile, const struct tile_range * range,
    int sub_rows) {
    const struct plong_phase * ph = tile->phase;
    const int                  k  = range->range.branch;
    job->branch                   = k;
    job->offset                   = range->offset;
    job->tok                      = range->tok;
    job->n                        = 0;
    job->sinks_end                = job_sinks_end(ph, k);
    job->checks                   = k > 0 && ph->weight == PLONG_WEIGHT_NONE && !plong_phase_nests(ph);
    job->n_counts                 = 0;
    job->weight                   = k >= 0 && ph->weight == PLONG_WEIGHT_STRIDE ? log2f((float) ph->rate[k]) : 0.0f;
    if (k < 0) {
        set_rows(job, tile, range);
    } else {
        branch_rows(job, call, tile, range);
    }
    job->narrow   = job->n / tile->n_kv <= PLONG_NARROW;
    job->sub_rows = job->narrow ? job->n / tile->n_kv : sub_rows;
    job->n_sub    = job->n == 0 ? 0 : (job->n + job->sub_rows - 1) / job->sub_rows;
    for (int s = 0; s < job->n_sub; s++) {
        const int  i0 = s * job->sub_rows, i1 = i0 + job->sub_rows < job->n ? i0 + job->sub_rows : job->n;
        struct sub x = { job->pos[i0], job->pos[i1 - 1], INT32_MAX, INT32_MIN, INT32_MAX, INT32_MIN };
        for (int i = i0; i < i1; i++) {
            x.lo_min = job->lo[i] < x.lo_min ? job->lo[i] : x.lo_min;
            x.lo_max = job->lo[i] > x.lo_max ? job->lo[i] : x.lo_max;
            x.hi_min = job->hi[i] < x.hi_min ? job->hi[i] : x.hi_min;
            x.hi_max = job->hi[i] > x.hi_max ? job->hi[i] : x.hi_max;
        }
        job->subs[s] = x;
    }
}

/* How much of the keys the rows of a sub read. */
static inline enum cover job_cover(const struct job * job, const struct sub * s, const struct keys * b) {
    const int32_t t0 = b->pos[0], t1 = b->pos[b->n - 1];
    if (t0 > s->hi_max || (t1 < s->lo_min && t0 >= job->sinks_end)) {
        return COVER_NONE;
    }
    return t1 <= s->hi_min && (t0 >= s->lo_max || t1 < job->sinks_end) && !job->checks ? COVER_ALL : COVER_SOME;
}

/* Logits of rows i0 .. i0 + rows of a job. */
struct logits {
    float * s; /* [rows][stride] */
    int     stride, i0, rows;
};

/* Makes the logits of keys that a row does not read -INFINITY. */
static void job_mask(
    const struct job * job, const struct plong_call * call, const struct plong_tile * tile, const struct logits x,
    const struct keys * b) {
    float * s = x.s;
    for (int i = x.i0; i < x.i0 + x.rows; i++, s += x.stride) {
        const int32_t lo = job->lo[i], hi = job->hi[i], head = job->sinks_end;
        for (int j = 0; j < b->n; j++) {
            const int32_t t = b->pos[j];
            s[j]            = t <= hi && (t >= lo || t < head) ? s[j] : -INFINITY;
        }
        if (job->checks) {
            const int32_t p = job->pos[i], h = plong_call_number(call, row_head(call, tile, job->row[i]));
            for (int j = 0; j < b->n; j++) {
                if (s[j] != -INFINITY && plong_branch_weight(tile->phase, job->branch, p, h, b->pos[j]) == -INFINITY) {
                    s[j] = -INFINITY;
                }
            }
        }
    }
}

#endif
