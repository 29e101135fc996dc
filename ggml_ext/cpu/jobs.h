/*
 * jobs.h - the part of a tile's work that one kind of range makes: which of its rows read the range, and of its keys
 * which. Set parts (sinks, window, ...) are read by all rows; a dilated branch only by those that take part in it, and
 * these are gathered, so that nothing is computed for the others.
 */
#ifndef PLONG_CPU_JOBS_H
#define PLONG_CPU_JOBS_H

#include "keys.h"

/* What `rows` rows of a job, one after the other, have in common. */
struct sub {
    int32_t p0, p1;         /* positions of the first and the last */
    int32_t lo_min, lo_max; /* of job.lo */
    int32_t hi_min, hi_max;
};

/* Row i reads key t when lo[i] <= t <= hi[i], or when t <= hi[i] and t < head. */
struct job {
    int          branch; /* -1: set parts */
    int          offset;
    int          n;        /* rows */
    int          sub_rows; /* rows per sub */
    int          n_sub;
    bool         few;
    int32_t      head;   /* 0 for the keys of a tail range */
    bool         checks; /* the keys of earlier branches must be left out one by one */
    float        weight; /* log2 of what each key counts */
    int32_t *    row;    /* [n] of the tile */
    int32_t *    pos;    /* [n] */
    int32_t *    lo;     /* [n] */
    int32_t *    hi;     /* [n] */
    struct sub * subs;   /* [n_sub] */
};

enum cover { COVER_NONE, COVER_SOME, COVER_ALL };

static inline int32_t row_head(const struct plong_call * call, const struct plong_tile * tile, int32_t row) {
    return tile->head0 + row / (tile->n_tok * tile->n_h) * call->n_group + row % tile->n_h;
}

static inline int32_t row_pos(const struct plong_tile * tile, int32_t row) {
    return tile->pos + row / tile->n_h % tile->n_tok;
}

static void set_bounds(const struct plong_phase * ph, int32_t head, int32_t p, int32_t * lo, int32_t * hi) {
    const int64_t first = (int64_t) p - ph->window + 1;
    *lo                 = p < ph->dense_below || first < head ? head : (int32_t) first;
    *hi                 = p;
}

/* Of a branch: what no set part reads, and no finer branch owns. */
static void branch_bounds(const struct plong_phase * ph, int k, int32_t p, int32_t h, int32_t * lo, int32_t * hi) {
    const int32_t head = plong_phase_head(ph);
    const int64_t last = (int64_t) p - ph->window;
    *lo                = plong_branch_begin(ph, k, p);
    *lo                = *lo < head ? head : *lo;
    *hi                = p < ph->dense_below || last < 0 ? -1 : (int32_t) last;
    if (ph->weight == PLONG_WEIGHT_STRIDE) {
        for (int i = 0; i < k; i++) {
            if (plong_branch_joins(ph, i, p, h)) {
                const int32_t owned = plong_branch_begin(ph, i, p) - 1;
                *hi                 = *hi < owned ? *hi : owned;
            }
        }
    }
}

/* Keys before it are read by all rows. */
static inline int32_t set_head(const struct plong_phase * ph, int branch) {
    return branch >= 0 ? 0 : plong_phase_head(ph);
}

static void job_begin(
    struct job * job, const struct plong_call * call, const struct plong_tile * tile, const struct tile_range * range,
    int sub_rows) {
    const struct plong_phase * ph   = tile->phase;
    const int                  k    = range->range.branch;
    const int                  rows = plong_tile_rows(tile);
    job->branch                     = k;
    job->offset                     = range->offset;
    job->n                          = 0;
    job->head                       = set_head(ph, k);
    job->checks                     = k > 0 && ph->weight == PLONG_WEIGHT_NONE;
    job->weight                     = k >= 0 && ph->weight == PLONG_WEIGHT_STRIDE ? log2f((float) ph->rate[k]) : 0.0f;
    for (int r = 0; r < rows; r++) {
        const int32_t p = row_pos(tile, r), h = row_head(call, tile, r);
        if (k >= 0 && (h % ph->rate[k] != range->offset || !plong_branch_joins(ph, k, p, h))) {
            continue;
        }
        const int i = job->n++;
        job->row[i] = r;
        job->pos[i] = p;
        if (k < 0) {
            set_bounds(ph, job->head, p, &job->lo[i], &job->hi[i]);
        } else {
            branch_bounds(ph, k, p, h, &job->lo[i], &job->hi[i]);
        }
    }
    job->few      = job->n / tile->n_kv <= PLONG_FEW;
    job->sub_rows = job->few ? job->n / tile->n_kv : sub_rows;
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
    if (t0 > s->hi_max || (t1 < s->lo_min && t0 >= job->head)) {
        return COVER_NONE;
    }
    return t1 <= s->hi_min && (t0 >= s->lo_max || t1 < job->head) && !job->checks ? COVER_ALL : COVER_SOME;
}

/* s [rows][stride], rows i0 .. of the job: -INFINITY for the keys that a row does not read */
static void job_mask(
    const struct job * job, const struct plong_call * call, const struct plong_tile * tile, int i0, int rows,
    const struct keys * b, float * s, int stride) {
    for (int i = i0; i < i0 + rows; i++, s += stride) {
        const int32_t lo = job->lo[i], hi = job->hi[i], head = job->head;
        for (int j = 0; j < b->n; j++) {
            const int32_t t = b->pos[j];
            s[j]            = t <= hi && (t >= lo || t < head) ? s[j] : -INFINITY;
        }
        if (job->checks) {
            const int32_t p = job->pos[i], h = row_head(call, tile, job->row[i]);
            for (int j = 0; j < b->n; j++) {
                if (s[j] != -INFINITY && plong_branch_weight(tile->phase, job->branch, p, h, b->pos[j]) == -INFINITY) {
                    s[j] = -INFINITY;
                }
            }
        }
    }
}

#endif
