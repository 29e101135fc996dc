/* block_wide.h - a block of keys for a job of many rows: packed once, then used by one sub of rows after the other. */
#ifndef PLONG_CPU_BLOCK_WIDE_H
#define PLONG_CPU_BLOCK_WIDE_H

#include "blocks.h"

/* What of the block has been packed so far, and what of the next one is still to be asked for. */
struct packed {
    bool             k, k_near, v;
    struct few_ahead k_ahead, v_ahead;
    int              every; /* rows of softmax between one time and the next */
    int              share; /* keys each time */
};

static void pack_keys(struct tile_run * t, const struct keys * b, bool near, struct packed * done) {
    const void * row[BLOCK];
    if (near ? done->k_near : done->k) {
        return;
    }
    cache_rows(row, b, t->k_base, t->call->k_cell);
    if (near) {
        near_rows(t, row, b);
        wide_pack_keys(t->mem.k_near, GGML_TYPE_F32, row, b->n, t->call->d_k, t->mem.stage);
        done->k_near = true;
    } else {
        wide_pack_keys(t->mem.k, t->call->k_type, row, b->n, t->call->d_k, t->mem.stage);
        done->k = true;
    }
}

static void pack_values(struct tile_run * t, const struct keys * b, struct packed * done) {
    const void * row[BLOCK];
    if (!done->v) {
        cache_rows(row, b, t->v_base, t->call->v_cell);
        wide_pack_values(t->mem.v, t->call->v_type, row, b->n, t->call->d_v, t->mem.stage);
        done->v = true;
    }
}

/* Probabilities of a sub for n_keys keys from j0 on into p; false when none of them matters. `before` keys ahead of them
 * in p have theirs already. */
static bool sub_probabilities(
    struct tile_run * t, int n, const struct keys * all, int j0, int n_keys, int before, struct packed * done,
    elem * p) {
    const struct sub * sub = &t->job.subs[n];
    const struct keys  b   = { n_keys, all->pos + j0, all->cell + j0 };
    const int          i0 = n * SUB, rows = t->job.n - i0 < SUB ? t->job.n - i0 : SUB;
    const enum cover   cover = job_cover(&t->job, sub, &b);
    int                z0, z1;
    if (cover == COVER_NONE) {
        return false;
    }
    zone_span(t, sub, &b, &z0, &z1);
    for (int z = z0; z <= z1; z++) {
        const bool   near = zone_unfolds(t->map, z);
        const elem * q    = (const elem *) t->mem.jq + z * t->jq_zone + (size_t) i0 * t->dk;
        pack_keys(t, all, near, done);
        wide_logits(q, near ? t->mem.k_near : t->mem.k, j0, b.n, t->call->d_k, z == z0 ? t->mem.s : t->mem.s_zone);
        if (z > z0) {
            merge_zone(t, t->mem.s, CHUNK, i0, rows, &b, z);
        }
    }
    const int n16 = finish_logits(t, t->mem.s, CHUNK, i0, rows, &b, cover);
    bool      any = false;
    for (int i = 0; i < rows; i++) {
        float * s = t->mem.s + i * CHUNK;
        if (i % done->every == 0) {
            few_prefetch(&done->k_ahead, done->share);
            few_prefetch(&done->v_ahead, done->share);
        }
        const float m = t->mem.js.m[i0 + i];
        if (row_max(t, i0 + i, s, n16)) {
            any = true;
            if (before > 0 && m != t->mem.js.m[i0 + i] && m != -INFINITY) {
                wide_rescale(p + i * BLOCK - before, before, exp2f(m - t->mem.js.m[i0 + i]));
            }
            wide_exp(s, p + i * BLOCK, n16, t->mem.js.m[i0 + i], t->mem.js.l + (size_t) (i0 + i) * VW);
        } else {
            memset(p + i * BLOCK, 0, (size_t) ((n16 + 31) & ~31) * sizeof(elem));
        }
    }
    return any;
}

static void block_wide(struct tile_run * t, const struct key_block * block, const struct key_block * next) {
    const struct plong_call * c     = t->call;
    const struct keys         b     = block_keys(block, 0, BLOCK);
    const int                 times = t->job.n * (BLOCK / CHUNK);
    const int                 until = CHUNK - (t->job.branch < 0 ? b.pos[0] % CHUNK & ~31 : 0); /* where a chunk ends */
    struct packed             done  = {
        .k_ahead = few_ahead(next->cell, next->n, 1, t->k_base, c->k_cell, t->k_bytes),
        .v_ahead = few_ahead(next->cell, next->n, 1, t->v_base, c->v_cell, t->v_bytes),
        .every   = times / BLOCK > 1 ? times / BLOCK : 1,
        .share   = BLOCK / times > 1 ? BLOCK / times : 1,
    };
    for (int n = 0; n < t->job.n_sub; n++) {
        int first = -1, last = 0; /* keys whose probabilities are in p */
        for (int j = 0, chunk = until; j < b.n; j += chunk, chunk = CHUNK) {
            const int keys = b.n - j < chunk ? b.n - j : chunk;
            elem *    p    = wide_probabilities(t->mem.s, t->mem.p) + j;
            if (sub_probabilities(t, n, &b, j, keys, first < 0 ? 0 : j - first, &done, p)) {
                first = first < 0 ? j : first;
                last  = j + keys;
            } else if (first >= 0) {
                for (int i = 0; i < SUB; i++) {
                    memset(p + i * BLOCK, 0, (size_t) ((keys + 31) & ~31) * sizeof(elem));
                }
            }
        }
        if (first >= 0) {
            pack_values(t, &b, &done);
            wide_values(
                wide_probabilities(t->mem.s, t->mem.p), t->mem.v, first, last - first, t->dv,
                t->mem.js.acc + (size_t) n * SUB * t->dv);
        }
    }
}

#endif
