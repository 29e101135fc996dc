/* block_few.h - a block of keys for a job of few rows: straight from the cache where its type allows it. */
#ifndef PLONG_CPU_BLOCK_FEW_H
#define PLONG_CPU_BLOCK_FEW_H

#include "blocks.h"

#if defined(PLONG_ISA_AMX)
#include "few_tiles_logits.h"
#include "few_tiles_values.h"
#elif defined(PLONG_ISA_BF16)
#include "few_vnni_keys.h"
#include "few_vnni_values.h"
#endif

static bool reads_in_place(int32_t type, int d) { return d % (few_is_quant(type) ? 32 : 16) == 0; }

/* Keys of a job of few rows, where they lie in the cache: those of head 0 of the tile, and the ones that come next. */
struct few_keys {
    const struct keys * keys;
    const char *        k[FEW_BLOCK];
    const char *        v[FEW_BLOCK];
    struct few_ahead    k_ahead, v_ahead;
    int32_t             k_step; /* bytes from each k to the next, 0 where they differ */
};

/* Logits s [rows][FEW_BLOCK] of kv head `kv` where its keys must be converted, or turned, first. */
static void few_logits_converted(struct tile_run * t, const struct keys * b, int kv, float * s) {
    const struct plong_call * c    = t->call;
    const int                 rows = t->job.sub_rows, i0 = kv * rows;
    const void *              x[FEW_BLOCK];
    struct few_ahead          none = few_ahead(NULL, 0, 1, NULL, 0, 64, false);
    int                       z0, z1;
    zone_span(t, &t->job.subs[kv], b, &z0, &z1);
    for (int z = z0; z <= z1; z++) {
        const float * q    = (const float *) t->jq + z * t->jq_zone + (size_t) i0 * t->dk;
        float *       into = z == z0 ? s : t->mem.s_zone;
        cache_rows(x, b, t->k_base + kv * c->k_head, c->k_cell);
        if (zone_unfolds(t->map, z)) {
            near_rows(t, x, b);
        } else {
            float_rows(t, x, b->n, c->k_type, c->d_k, t->dk);
        }
        few_logits(
            rows, GGML_TYPE_F32, (const char * const *) x, b->n, 0, plong_pad16(c->d_k), q, t->dk, NULL, into, &none);
        if (z > z0) {
            merge_zone(t, s, FEW_BLOCK, i0, rows, b, z);
        }
    }
}

static void few_values_converted(struct tile_run * t, const struct keys * b, int kv, const float * p) {
    const struct plong_call * c    = t->call;
    const int                 rows = t->job.sub_rows, i0 = kv * rows;
    const void *              x[FEW_BLOCK];
    struct few_ahead          none = few_ahead(NULL, 0, 1, NULL, 0, 64, false);
    cache_rows(x, b, t->v_base + kv * c->v_head, c->v_cell);
    float_rows(t, x, b->n, c->v_type, c->d_v, t->dv);
    few_values(
        rows, GGML_TYPE_F32, (const char * const *) x, b->n, 0, plong_pad16(c->d_v), p, NULL,
        t->mem.js.acc + (size_t) i0 * t->dv, t->dv, &none);
}

#ifdef PLONG_ISA_BF16
static bool quant_keys(const struct tile_run * t) {
    return t->map == PLONG_MAP_ABSOLUTE && few_is_quant(t->call->k_type) && t->call->d_k % 32 == 0;
}

static bool quant_vals(const struct tile_run * t) { return few_is_quant(t->call->v_type) && t->call->d_v % 32 == 0; }

/* Sets up a job of few rows: the queries' digits, one kv head after the other. */
static void few_begin(struct tile_run * t) {
    const int rows = t->job.sub_rows, d = t->call->d_k;
    uint8_t * out = t->mem.digits;
    quant_config(t->call->k_type);
    for (int kv = 0; kv < t->job.n_sub && quant_keys(t); kv++, out += quant_size(d)) {
        quant_queries(t->call->k_type, (const float *) t->jq + (size_t) (kv * rows) * t->dk, rows, t->dk, d, out);
    }
}

static void few_logits_quant(struct tile_run * t, struct few_keys * x, int kv, float * s) {
    const struct plong_call * c = t->call;
    uint8_t *                 q = t->mem.digits + (size_t) kv * quant_size(c->d_k);
    struct quant_rows         k;
    quant_rows(&k, x->k, x->keys->n, x->k_step, kv * c->k_head, c->k_type);
    quant_logits(&k, q, t->job.sub_rows, c->d_k, s, &x->k_ahead);
}

static void few_values_quant(struct tile_run * t, struct few_keys * x, int kv, float * p) {
    const struct plong_call * c = t->call;
    struct quant_rows         v;
    quant_rows(&v, x->v, x->keys->n, 0, kv * c->v_head, c->v_type);
    quant_values(
        &v, p, t->job.sub_rows, c->d_v, t->mem.js.acc + (size_t) (kv * t->job.sub_rows) * t->dv, t->dv, &x->v_ahead);
}
#else
static bool quant_keys(const struct tile_run * t) {
    (void) t;
    return false;
}

static bool quant_vals(const struct tile_run * t) { return quant_keys(t); }

static void few_begin(struct tile_run * t) { (void) t; }

static void few_logits_quant(struct tile_run * t, struct few_keys * x, int kv, float * s) {
    (void) t, (void) x, (void) kv, (void) s;
}

static void few_values_quant(struct tile_run * t, struct few_keys * x, int kv, float * p) {
    (void) t, (void) x, (void) kv, (void) p;
}
#endif

/* Logits s [rows][FEW_BLOCK] of one kv head of the tile */
static void head_logits(struct tile_run * t, struct few_keys * x, int kv, float * s) {
    const struct plong_call * c    = t->call;
    const struct keys *       b    = x->keys;
    const int                 rows = t->job.sub_rows, i0 = kv * rows;
    if (quant_keys(t)) {
        few_logits_quant(t, x, kv, s);
    } else if (t->map == PLONG_MAP_ABSOLUTE && reads_in_place(c->k_type, c->d_k)) {
        const float * q = (const float *) t->jq + (size_t) i0 * t->dk;
        few_logits(rows, c->k_type, x->k, b->n, kv * c->k_head, c->d_k, q, t->dk, t->mem.stage, s, &x->k_ahead);
    } else {
        few_logits_converted(t, b, kv, s);
    }
}

/* What follows from them. */
static void head_values(struct tile_run * t, struct few_keys * x, int kv, enum cover cover, float * s) {
    const struct plong_call * c    = t->call;
    const struct keys *       b    = x->keys;
    const int                 rows = t->job.sub_rows, i0 = kv * rows;
    float *                   acc  = t->mem.js.acc + (size_t) i0 * t->dv;
    const int                 n16  = finish_logits(t, s, FEW_BLOCK, i0, rows, b, cover, 16);
    bool                      live = false;
    for (int i = 0; i < rows; i++) {
        float * row = s + i * FEW_BLOCK;
        add_count(t, i0 + i, row, n16, b);
        if (row_max(t, i0 + i, row, n16)) {
            live = true;
            softmax_exp(row, n16, t->mem.js.m[i0 + i], t->mem.js.l + (size_t) (i0 + i) * VW);
            memset(row + n16, 0, (size_t) (FEW_BLOCK - n16) * sizeof(float));
        } else {
            memset(row, 0, FEW_BLOCK * sizeof(float));
        }
    }
    if (!live) {
        return;
    }
    if (quant_vals(t)) {
        few_values_quant(t, x, kv, s);
    } else if (reads_in_place(c->v_type, c->d_v)) {
        few_values(rows, c->v_type, x->v, b->n, kv * c->v_head, c->d_v, s, t->mem.stage, acc, t->dv, &x->v_ahead);
    } else {
        few_values_converted(t, b, kv, s);
    }
}

/* Bytes from each key's cell to the next one's, where that is the same for all: 0 where it is not. */
static int32_t keys_step(const struct keys * b, size_t cell) {
    const int32_t step = b->n > 1 ? b->cell[1] - b->cell[0] : 0;
    bool          same = step > 0;
    for (int j = 1; j < b->n; j++) {
        same &= b->cell[j] - b->cell[j - 1] == step;
    }
    return same && cell * (size_t) step < INT32_MAX ? (int32_t) cell * step : 0;
}

/* At most FEW_BLOCK keys, for all kv heads of the tile: they read the same keys, and their rows lie side by side in the
 * cache. next: the keys after them, of the cells at k_next, v_next. */
static void keys_few(
    struct tile_run * t, const struct keys * b, const struct keys * next, const char * k_next, const char * v_next) {
    const struct plong_call * c     = t->call;
    const enum cover          cover = job_cover(&t->job, &t->job.subs[0], b);
    const int                 n_kv  = t->job.n_sub;
    struct few_keys           x     = { .keys = b };
    if (cover == COVER_NONE) {
        return;
    }
    cache_rows((const void **) x.k, b, t->k_base, c->k_cell);
    cache_rows((const void **) x.v, b, t->v_base, c->v_cell);
    x.k_step = keys_step(b, c->k_cell);
    x.k_ahead =
        few_ahead(next->cell, next->n, n_kv, k_next, c->k_cell, n_kv > 1 ? c->k_head : t->k_bytes, c->one_stream);
    x.v_ahead =
        few_ahead(next->cell, next->n, n_kv, v_next, c->v_cell, n_kv > 1 ? c->v_head : t->v_bytes, c->one_stream);
    float * const s[2] = { t->mem.s, t->mem.s + PLONG_FEW * FEW_BLOCK };
    /* Logits are a head ahead of values: something to do while the last products of a head are on their way. */
    head_logits(t, &x, 0, s[0]);
    for (int kv = 0; kv < n_kv; kv++) {
        if (kv + 1 < n_kv) {
            head_logits(t, &x, kv + 1, s[(kv + 1) % 2]);
        }
        head_values(t, &x, kv, cover, s[kv % 2]);
    }
}

static void block_few(struct tile_run * t, const struct key_block * b, const struct key_block * next) {
    int j = 0;
    for (; j + FEW_BLOCK < b->n; j += FEW_BLOCK) {
        const struct keys now = block_keys(b, j, FEW_BLOCK), then = block_keys(b, j + FEW_BLOCK, FEW_BLOCK);
        keys_few(t, &now, &then, t->k_base, t->v_base);
    }
    const struct keys now = block_keys(b, j, FEW_BLOCK), then = block_keys(next, 0, FEW_BLOCK);
    keys_few(t, &now, &then, t->k_then, t->v_then);
}

#endif
