/* narrow.h - a block of keys for a narrow job, one of few rows (decode): straight from the cache if possible. */
#ifndef PLONG_CPU_BODY_NARROW_H
#define PLONG_CPU_BODY_NARROW_H

#include "cpu/body/narrow_keys.h"

static bool reads_in_place(int32_t type, int d) { return d % (narrow_is_quant(type) ? 32 : 16) == 0; }

/* Logits s [rows][NARROW_BLOCK] of kv head `kv` if its keys must be converted or rotated first. */
static void narrow_logits_converted(struct tile_run * t, const struct keys * b, int kv, float * s) {
    const struct plong_call * c    = t->call;
    const int                 rows = t->job.sub_rows, i0 = kv * rows;
    const void *              x[NARROW_BLOCK];
    struct prefetch_queue     none = prefetch_queue(NULL, 0, 1, NULL, 0, 64, false);
    const struct rows_in k = { (const char * const *) x, b->n, 0, GGML_TYPE_F32, plong_pad16(c->d_k), t->mem.stage };
    int                  z0, z1;
    zone_span(t, &t->job.subs[kv], b, &z0, &z1);
    for (int z = z0; z <= z1; z++) {
        const float * q    = (const float *) t->jq + z * t->jq_zone + (size_t) i0 * t->dk;
        float *       into = z == z0 ? s : t->mem.s_zone;
        cache_rows(x, b, t->k_base + kv * c->k_head, c->k_cell);
        if (plong_map_unfolds(t->map, z)) {
            near_rows(t, x, b);
        } else {
            float_rows(t, x, b->n, c->k_type, c->d_k, t->dk);
        }
        narrow_logits(rows, k, (struct logits_out) { q, t->dk, into }, &none);
        if (z > z0) {
            merge_zone(t, (struct logits) { s, NARROW_BLOCK, i0, rows }, b, z);
        }
    }
}

static void narrow_values_converted(struct tile_run * t, const struct keys * b, int kv, struct values_out out) {
    const struct plong_call * c = t->call;
    const void *              x[NARROW_BLOCK];
    struct prefetch_queue     none = prefetch_queue(NULL, 0, 1, NULL, 0, 64, false);
    const struct rows_in v = { (const char * const *) x, b->n, 0, GGML_TYPE_F32, plong_pad16(c->d_v), t->mem.stage };
    cache_rows(x, b, t->v_base + kv * c->v_head, c->v_cell);
    float_rows(t, x, b->n, c->v_type, c->d_v, t->dv);
    narrow_values(t->job.sub_rows, v, out, &none);
}

/* Logits s [rows][NARROW_BLOCK] of one kv head of the tile */
static void head_logits(struct tile_run * t, struct narrow_keys * x, int kv, float * s) {
    const struct plong_call * c    = t->call;
    const struct keys *       b    = x->keys;
    const int                 rows = t->job.sub_rows, i0 = kv * rows;
    if (quant_keys(t)) {
        narrow_logits_quant(t, x, kv, s);
    } else if (t->map == PLONG_MAP_ABSOLUTE && reads_in_place(c->k_type, c->d_k)) {
        const float *        q = (const float *) t->jq + (size_t) i0 * t->dk;
        const struct rows_in k = { x->k, b->n, kv * c->k_head, c->k_type, c->d_k, t->mem.stage };
        narrow_logits(rows, k, (struct logits_out) { q, t->dk, s }, &x->k_ahead);
    } else {
        narrow_logits_converted(t, b, kv, s);
    }
}

/* The softmax and P*V for these logits. */
static void head_values(struct tile_run * t, struct narrow_keys * x, int kv, enum cover cover, float * s) {
    const struct plong_call * c    = t->call;
    const struct keys *       b    = x->keys;
    const int                 rows = t->job.sub_rows, i0 = kv * rows;
    const struct values_out   out  = { s, t->mem.js.acc + (size_t) i0 * t->dv, t->dv };
    const int                 n16  = finish_logits(t, (struct logits) { s, NARROW_BLOCK, i0, rows }, b, cover, 16);
    bool                      live = false;
    for (int i = 0; i < rows; i++) {
        float * row = s + i * NARROW_BLOCK;
        add_count(t, i0 + i, row, n16, b);
        if (row_max(t, i0 + i, row, n16)) {
            live = true;
            softmax_exp(row, n16, t->mem.js.m[i0 + i], t->mem.js.l + (size_t) (i0 + i) * VW);
            memset(row + n16, 0, (size_t) (NARROW_BLOCK - n16) * sizeof(float));
        } else {
            memset(row, 0, NARROW_BLOCK * sizeof(float));
        }
    }
    if (!live) {
        return;
    }
    if (quant_vals(t)) {
        narrow_values_quant(t, x, kv, out);
    } else if (reads_in_place(c->v_type, c->d_v)) {
        const struct rows_in v = { x->v, b->n, kv * c->v_head, c->v_type, c->d_v, t->mem.stage };
        narrow_values(rows, v, out, &x->v_ahead);
    } else {
        narrow_values_converted(t, b, kv, out);
    }
}

/* Bytes from each key's cell to the next, if that is constant; else 0. */
static int32_t keys_step(const struct keys * b, size_t cell) {
    const int32_t step = b->n > 1 ? b->cell[1] - b->cell[0] : 0;
    bool          same = step > 0;
    for (int j = 1; j < b->n; j++) {
        same &= b->cell[j] - b->cell[j - 1] == step;
    }
    return same && cell * (size_t) step < INT32_MAX ? (int32_t) cell * step : 0;
}

/* Computes at most NARROW_BLOCK keys for all kv heads of the tile, which read the same keys, and whose rows are side by
 * side in the cache. next: the following keys, in the cells at k_next, v_next. */
static void keys_narrow(
    struct tile_run * t, const struct keys * b, const struct keys * next, const char * k_next, const char * v_next) {
    const struct plong_call * c     = t->call;
    const enum cover          cover = job_cover(&t->job, &t->job.subs[0], b);
    const int                 n_kv  = t->job.n_sub;
    struct narrow_keys        x     = { .keys = b };
    if (cover == COVER_NONE) {
        return;
    }
    cache_rows((const void **) x.k, b, t->k_base, c->k_cell);
    cache_rows((const void **) x.v, b, t->v_base, c->v_cell);
    x.k_step = keys_step(b, c->k_cell);
    x.k_ahead =
        prefetch_queue(next->cell, next->n, n_kv, k_next, c->k_cell, n_kv > 1 ? c->k_head : t->k_bytes, t->one_stream);
    x.v_ahead = prefetch_queue(
        next->cell, plong_v_in_k(c) ? 0 : next->n, n_kv, v_next, c->v_cell, n_kv > 1 ? c->v_head : t->v_bytes,
        t->one_stream);
    float * const s[2] = { t->mem.s, t->mem.s + PLONG_NARROW * NARROW_BLOCK };
    /* Logits are computed one head ahead of values, so that there is work while the last products of a head are in
     * flight. */
    head_logits(t, &x, 0, s[0]);
    for (int kv = 0; kv < n_kv; kv++) {
        if (kv + 1 < n_kv) {
            head_logits(t, &x, kv + 1, s[(kv + 1) % 2]);
        }
        head_values(t, &x, kv, cover, s[kv % 2]);
    }
}

static void block_narrow(struct tile_run * t, const struct key_block * b, const struct key_block * next) {
    int j = 0;
    for (; j + NARROW_BLOCK < b->n; j += NARROW_BLOCK) {
        const struct keys now = block_keys(b, j, NARROW_BLOCK), then = block_keys(b, j + NARROW_BLOCK, NARROW_BLOCK);
        keys_narrow(t, &now, &then, t->k_base, t->v_base);
    }
    const struct keys now = block_keys(b, j, NARROW_BLOCK), then = block_keys(next, 0, NARROW_BLOCK);
    keys_narrow(t, &now, &then, t->k_then, t->v_then);
}

#endif
