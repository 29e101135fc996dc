/* queries.h - the rows of a tile's queries that belong to a job, in the layout that the job needs. */
#ifndef PLONG_CPU_BODY_QUERIES_H
#define PLONG_CPU_BODY_QUERIES_H

#include "cpu/body/blocks.h"

/* The sum of |q|. */
static float vec_reach(const float * q, int d) {
    vf sum = vf_zero();
    for (int i = 0; i < d; i += VW) {
        sum = vf_add(sum, vf_max(vf_load(q + i), vf_sub(vf_zero(), vf_load(q + i))));
    }
    return vf_sum(sum);
}

static int padded_rows(int n) { return (n + SUB - 1) / SUB * SUB; }

/* Packs the tile's queries for wide jobs, once for all of them. Rows of the padding are computed but never used. */
static void pack_queries(struct tile_run * t) {
    const int rows = plong_tile_rows(t->tile);
    if (t->packs) {
        return;
    }
    for (int z = 0; z < plong_map_zones(t->map); z++) {
        elem * out = t->mem.packed + (size_t) z * padded_rows(rows) * t->dk;
        for (int r = 0; r < rows; r++) {
            const float * q   = t->mem.q + ((size_t) z * rows + r) * t->dk;
            const float   sum = vec_reach(q, t->dk);
            wide_pack_query(out + (size_t) r * t->dk, q, t->dk);
            t->mem.reach[r] = z > 0 && sum <= t->mem.reach[r] ? t->mem.reach[r] : sum;
        }
        memset(out + (size_t) rows * t->dk, 0, (size_t) (padded_rows(rows) - rows) * t->dk * sizeof(elem));
    }
    t->packs = true;
}

/* Copies rows of the job, `size` bytes each, from the tile's from[zones][rows] to mem.jq[zones][padded]. */
static void gather_queries(struct tile_run * t, const void * from, int rows, int padded, size_t size) {
    for (int z = 0; z < plong_map_zones(t->map); z++) {
        const char * src = (const char *) from + (size_t) z * rows * size;
        char *       dst = (char *) t->mem.jq + (size_t) z * padded * size;
        for (int i = 0; i < t->job.n; i++) {
            memcpy(dst + i * size, src + t->job.rows[i].row * size, size);
        }
        memset(dst + t->job.n * size, 0, (padded - t->job.n) * size);
    }
    t->jq      = t->mem.jq;
    t->jq_zone = (size_t) padded * t->dk;
}

/* Prepares the job's queries: in float32 if it is narrow. */
static void job_queries(struct tile_run * t) {
    const int    rows = plong_tile_rows(t->tile), padded = padded_rows(rows);
    const size_t dk = (size_t) t->dk;
    if (t->job.narrow) {
        gather_queries(t, t->mem.q, rows, t->job.n, dk * sizeof(float));
        return;
    }
    pack_queries(t);
    if (t->job.n == rows) { /* all rows of the tile, which are in order */
        t->jq      = t->mem.packed;
        t->jq_zone = padded * dk;
    } else {
        gather_queries(t, t->mem.packed, padded, padded_rows(t->job.n), dk * sizeof(elem));
    }
}

#endif
