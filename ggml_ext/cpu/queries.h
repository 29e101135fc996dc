/* queries.h - the rows of a tile's queries that a job has, as its way of computing takes them. */
#ifndef PLONG_CPU_QUERIES_H
#define PLONG_CPU_QUERIES_H

#include "blocks.h"

/* The sum of |q|. */
static float vec_reach(const float * q, int d) {
    vf sum = vf_zero();
    for (int i = 0; i < d; i += VW) {
        sum = vf_add(sum, vf_max(vf_load(q + i), vf_sub(vf_zero(), vf_load(q + i))));
    }
    return vf_sum(sum);
}

static int padded_rows(int n) { return (n + SUB - 1) / SUB * SUB; }

/* Rows of the padding are computed and never looked at. */
static void zero_padding(elem * q, int rows, int dk) {
    memset(q + (size_t) rows * dk, 0, (size_t) (padded_rows(rows) - rows) * dk * sizeof(elem));
}

/* The tile's queries for jobs of many rows, once for all of these. */
static void pack_queries(struct tile_run * t) {
    const int rows = plong_tile_rows(t->tile);
    if (t->packs) {
        return;
    }
    for (int z = 0; z < zone_count(t->map); z++) {
        elem * out = t->mem.packed + (size_t) z * padded_rows(rows) * t->dk;
        for (int r = 0; r < rows; r++) {
            const float * q   = t->mem.q + ((size_t) z * rows + r) * t->dk;
            const float   sum = vec_reach(q, t->dk);
            wide_pack_query(out + (size_t) r * t->dk, q, t->dk);
            t->mem.sum[r] = z > 0 && sum <= t->mem.sum[r] ? t->mem.sum[r] : sum;
        }
        zero_padding(out, rows, t->dk);
    }
    t->packs = true;
}

/* Queries of a job of few rows, in float32. */
static void few_queries(struct tile_run * t) {
    const struct job * job  = &t->job;
    const int          rows = plong_tile_rows(t->tile);
    t->jq                   = t->mem.jq;
    t->jq_zone              = (size_t) job->n * t->dk;
    for (int z = 0; z < zone_count(t->map); z++) {
        for (int i = 0; i < job->n; i++) {
            memcpy(
                (float *) t->mem.jq + z * t->jq_zone + (size_t) i * t->dk,
                t->mem.q + ((size_t) z * rows + job->row[i]) * t->dk, (size_t) t->dk * sizeof(float));
        }
    }
}

/* Queries of a job of many rows. */
static void wide_queries(struct tile_run * t) {
    const struct job * job    = &t->job;
    const int          rows   = plong_tile_rows(t->tile);
    const size_t       stride = (size_t) padded_rows(rows) * t->dk;
    pack_queries(t);
    for (int i = 0; i < job->n; i++) {
        t->mem.reach[i] = t->mem.sum[job->row[i]];
    }
    if (job->n == rows) { /* all of them, which are in order */
        t->jq      = t->mem.packed;
        t->jq_zone = stride;
        return;
    }
    t->jq      = t->mem.jq;
    t->jq_zone = (size_t) padded_rows(job->n) * t->dk;
    for (int z = 0; z < zone_count(t->map); z++) {
        elem * out = (elem *) t->mem.jq + z * t->jq_zone;
        for (int i = 0; i < job->n; i++) {
            memcpy(
                out + (size_t) i * t->dk, t->mem.packed + z * stride + (size_t) job->row[i] * t->dk,
                (size_t) t->dk * sizeof(elem));
        }
        zero_padding(out, job->n, t->dk);
    }
}

#endif
