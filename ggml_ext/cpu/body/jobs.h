/*
 * jobs.h - the part of a tile's work that belongs to one kind of range: the rows that read it are gathered, so that
 * nothing is computed for the others.
 */
#ifndef PLONG_CPU_BODY_JOBS_H
#define PLONG_CPU_BODY_JOBS_H

#include "cpu/body/keys.h"

/* What `rows` successive rows of a job have in common. */
struct sub {
    int32_t p0, p1;         /* positions of the first and the last */
    int32_t lo_min, lo_max; /* of the rows' bounds */
    int32_t hi_min, hi_max;
};

struct job {
    const struct plong_readers * readers; /* NULL: none yet */
    const struct plong_row *     rows;    /* [n] */
    const struct plong_count *   counts;  /* [n_counts] */
    const struct plong_phase *   phase;
    int                          n;
    int                          n_counts;
    int                          sub_rows; /* rows per sub */
    int                          n_sub;
    bool                         narrow;
    int32_t                      sinks_end;   /* of the current range */
    float                        log2_weight; /* of all keys since the job was reset */
    struct sub *                 subs;        /* [n_sub] */
};

enum cover { COVER_NONE, COVER_SOME, COVER_ALL };

/* Writes log2 of how often keys count for rows with one of the job's counts: x [n], zeros up to a multiple of 32, the
 * largest padding of logits. */
static void count_weights(const struct job * job, int i, const int32_t * t, int n, float * x) {
    const struct plong_count c      = job->counts[i];
    const int                branch = job->readers->branch;
    int32_t                  times[PLONG_KEYS];
    float                    log[PLONG_MAX_BRANCHES + 1];
    for (int j = 0; j < n; j++) {
        times[j] = 1;
    }
    for (int k = branch + 1; k <= c.top; k++) {
        const int32_t r = plong_branch_rate(job->phase, k), place = c.place % r;
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
    for (int k = 1; k <= c.top - branch + 1; k++) {
        log[k] = log2f((float) k);
    }
    for (int j = 0; j < n; j++) {
        x[j] = log[times[j]];
    }
    memset(x + n, 0, (size_t) (-n & 31) * sizeof(float));
}

static void job_begin(
    struct job * job, const struct plong_call * call, const struct plong_tile * tile, int32_t readers, int sub_rows) {
    const struct plong_readers * r = plong_work_readers(call->work) + readers;

    job->readers  = r;
    job->rows     = plong_work_rows(call->work) + r->row_beg;
    job->counts   = plong_work_counts(call->work) + r->count_beg;
    job->phase    = plong_batch_phase(call->batch, tile->phase);
    job->n        = r->row_end - r->row_beg;
    job->n_counts = r->count_end - r->count_beg;
    job->narrow   = job->n / tile->n_kv <= PLONG_NARROW && tile->step == 1;
    job->sub_rows = job->narrow ? job->n / tile->n_kv : sub_rows;
    job->n_sub    = job->n == 0 ? 0 : (job->n + job->sub_rows - 1) / job->sub_rows;
    for (int s = 0; s < job->n_sub; s++) {
        const int  i0 = s * job->sub_rows, i1 = i0 + job->sub_rows < job->n ? i0 + job->sub_rows : job->n;
        struct sub x = { job->rows[i0].pos, job->rows[i1 - 1].pos, INT32_MAX, INT32_MIN, INT32_MAX, INT32_MIN };
        for (int i = i0; i < i1; i++) {
            const int32_t lo = job->rows[i].lo, hi = job->rows[i].hi;

            x.lo_min = lo < x.lo_min ? lo : x.lo_min;
            x.lo_max = lo > x.lo_max ? lo : x.lo_max;
            x.hi_min = hi < x.hi_min ? hi : x.hi_min;
            x.hi_max = hi > x.hi_max ? hi : x.hi_max;
        }
        job->subs[s] = x;
    }
}

/* How many of the keys the rows of a sub read: none, some or all. */
static inline enum cover job_cover(const struct job * job, const struct sub * s, const struct keys * b) {
    const int32_t t0 = b->pos[0], t1 = b->pos[b->n - 1];
    if (t0 > s->hi_max || (t1 < s->lo_min && t0 >= job->sinks_end)) {
        return COVER_NONE;
    }
    return t1 <= s->hi_min && (t0 >= s->lo_max || t1 < job->sinks_end) && !job->readers->checks ? COVER_ALL
                                                                                                : COVER_SOME;
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
        const int32_t lo = job->rows[i].lo, hi = job->rows[i].hi, sinks_end = job->sinks_end;
        for (int j = 0; j < b->n; j++) {
            const int32_t t = b->pos[j];
            s[j]            = t <= hi && (t >= lo || t < sinks_end) ? s[j] : -INFINITY;
        }
        if (job->readers->checks) {
            const int32_t p = job->rows[i].pos, head = plong_row_head(call->work, tile, job->rows[i].row);
            const int32_t h = plong_shape_number(&call->work->shape, head);
            for (int j = 0; j < b->n; j++) {
                if (s[j] != -INFINITY &&
                    plong_branch_weight(job->phase, job->readers->branch, p, h, b->pos[j]) == -INFINITY) {
                    s[j] = -INFINITY;
                }
            }
        }
    }
}

#endif
