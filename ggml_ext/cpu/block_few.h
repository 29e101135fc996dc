/* block_few.h - a block of keys for a job of few rows: straight from the cache where its type allows it. */
#ifndef PLONG_CPU_BLOCK_FEW_H
#define PLONG_CPU_BLOCK_FEW_H

#include "blocks.h"

#ifdef PLONG_ISA_AMX
#include "few_amx.h"
#endif

static bool reads_in_place(int32_t type, int d) {
    return d % 16 == 0 && (type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16);
}

/* Keys j0 .. as they lie in the cache, FEW_KEYS at most */
static void few_cached(struct few_rows * x, const struct keys * b, const char * base, size_t cell, int j0) {
    x->n = b->n - j0 < FEW_KEYS ? b->n - j0 : FEW_KEYS;
    for (int j = 0; j < x->n; j++) {
        x->row[j] = base + (size_t) b->cell[j0 + j] * cell;
    }
}

/* Keys j0 .. of one head, that were converted to f32 */
static void few_converted(struct few_rows * x, const float * f32, int j0, int n, int pad) {
    *x = (struct few_rows) { .type = GGML_TYPE_F32, .n = n - j0 < FEW_KEYS ? n - j0 : FEW_KEYS, .n_heads = 1 };
    for (int j = 0; j < x->n; j++) {
        x->row[j] = (const char *) (f32 + (size_t) (j0 + j) * pad);
    }
}

/* Logits of kv head `kv` where its keys must be converted, or turned, first. */
static void few_logits_converted(struct tile_run * t, const struct keys * b, int kv) {
    const struct plong_call * c    = t->call;
    const int                 rows = t->job.sub_rows, i0 = kv * rows;
    float *                   s = t->mem.s + (size_t) i0 * FEW_BLOCK;
    const void *              x[FEW_BLOCK];
    struct few_rows           k;
    int                       z0, z1;
    zone_span(t, &t->job.subs[kv], b, &z0, &z1);
    for (int z = z0; z <= z1; z++) {
        const float * q    = (const float *) t->mem.jq + z * t->jq_zone + (size_t) i0 * t->dk;
        float *       into = z == z0 ? s : t->mem.s_zone;
        cache_rows(x, b, t->k_base + kv * c->k_head, c->k_cell);
        if (zone_unfolds(t->map, z)) {
            near_rows(t, x, b);
        } else {
            float_rows(t, x, b->n, c->k_type, c->d_k, t->dk);
        }
        for (int j = 0; j < b->n; j += FEW_KEYS) {
            few_converted(&k, t->mem.f32, j, b->n, t->dk);
            few_logits(&k, rows, plong_pad16(c->d_k), q, t->dk, into + j);
        }
        if (z > z0) {
            merge_zone(t, s, FEW_BLOCK, i0, rows, b, z);
        }
    }
}

static void few_values_converted(struct tile_run * t, const struct keys * b, int kv) {
    const struct plong_call * c    = t->call;
    const int                 rows = t->job.sub_rows, i0 = kv * rows;
    const float *             p = t->mem.s + (size_t) i0 * FEW_BLOCK;
    const void *              x[FEW_BLOCK];
    struct few_rows           v;
    cache_rows(x, b, t->v_base + kv * c->v_head, c->v_cell);
    float_rows(t, x, b->n, c->v_type, c->d_v, t->dv);
    for (int j = 0; j < b->n; j += FEW_KEYS) {
        few_converted(&v, t->mem.f32, j, b->n, t->dv);
        few_values(&v, rows, plong_pad16(c->d_v), p + j, t->mem.js.acc + (size_t) i0 * t->dv, t->dv);
    }
}

#ifdef PLONG_ISA_AMX
static bool quant_keys(const struct tile_run * t) {
    return t->map == PLONG_MAP_ABSOLUTE && quant_type(t->call->k_type) && t->call->d_k % 32 == 0;
}

static bool quant_vals(const struct tile_run * t) { return quant_type(t->call->v_type) && t->call->d_v % 32 == 0; }

/* Sets up a job of few rows: the queries' digits, in the order [n_kv][passes]. */
static void few_begin(struct tile_run * t) {
    const int rows = t->job.sub_rows, d = t->call->d_k;
    uint8_t * out = t->mem.digits;
    quant_config();
    for (int kv = 0; kv < t->job.n_sub && quant_keys(t); kv++, out += (size_t) (d / 32) * QUANT_SIZE) {
        quant_queries((const float *) t->mem.jq + (size_t) (kv * rows) * t->dk, rows, t->dk, d, out);
    }
}

static void few_logits_quant(struct tile_run * t, const struct keys * b, int kv, struct few_ahead * ahead) {
    const struct plong_call * c    = t->call;
    const int                 rows = t->job.sub_rows;
    struct quant_rows         k;
    const uint8_t *           q    = t->mem.digits + (size_t) (kv * (c->d_k / 32)) * QUANT_SIZE;
    quant_rows(&k, b, t->k_base + kv * c->k_head, c->k_cell, c->k_type);
    quant_logits(&k, q, rows, c->d_k, t->mem.s + (size_t) (kv * rows) * FEW_BLOCK, ahead);
}

static void few_values_quant(struct tile_run * t, const struct keys * b, int kv, struct few_ahead * ahead) {
    const struct plong_call * c    = t->call;
    const int                 rows = t->job.sub_rows, i0 = kv * rows;
    struct quant_rows         v;
    const float *             p    = t->mem.s + (size_t) i0 * FEW_BLOCK;
    quant_rows(&v, b, t->v_base + kv * c->v_head, c->v_cell, c->v_type);
    quant_values(&v, p, rows, c->d_v, t->mem.js.acc + (size_t) i0 * t->dv, t->dv, ahead);
}
#else
static bool quant_keys(const struct tile_run * t) {
    (void) t;
    return false;
}

static bool quant_vals(const struct tile_run * t) { return quant_keys(t); }

static void few_begin(struct tile_run * t) { (void) t; }

static void few_logits_quant(struct tile_run * t, const struct keys * b, int kv, struct few_ahead * ahead) {
    (void) t, (void) b, (void) kv, (void) ahead;
}

static void few_values_quant(struct tile_run * t, const struct keys * b, int kv, struct few_ahead * ahead) {
    (void) t, (void) b, (void) kv, (void) ahead;
}
#endif

/* At most FEW_BLOCK keys, for all kv heads of the tile side by side: they read the same keys, and their rows lie side by
 * side in the cache. next: the keys after them. */
static void keys_few(struct tile_run * t, const struct keys * b, const struct keys * next) {
    const struct plong_call * c     = t->call;
    const enum cover          cover = job_cover(&t->job, &t->job.subs[0], b);
    const int                 rows = t->job.sub_rows, n_kv = t->job.n_sub;
    if (cover == COVER_NONE) {
        return;
    }
    struct few_ahead k_ahead = few_ahead(next->cell, next->n, n_kv, t->k_base, c->k_cell, c->k_head, t->k_bytes);
    struct few_ahead v_ahead = few_ahead(next->cell, next->n, n_kv, t->v_base, c->v_cell, c->v_head, t->v_bytes);
    if (quant_keys(t)) {
        for (int kv = 0; kv < n_kv; kv++) {
            few_logits_quant(t, b, kv, &k_ahead);
        }
    } else if (t->map == PLONG_MAP_ABSOLUTE && reads_in_place(c->k_type, c->d_k)) {
        struct few_rows k = { .type = c->k_type, .n_heads = n_kv, .head = c->k_head, .ahead = &k_ahead };
        for (int j = 0; j < b->n; j += FEW_KEYS) {
            few_cached(&k, b, t->k_base, c->k_cell, j);
            few_logits(&k, rows, c->d_k, (const float *) t->mem.jq, t->dk, t->mem.s + j);
        }
    } else {
        for (int kv = 0; kv < n_kv; kv++) {
            few_logits_converted(t, b, kv);
        }
    }
    bool live[PLONG_FEW_ROWS] = { false }, any = false;
    for (int kv = 0; kv < n_kv; kv++) {
        float *   s   = t->mem.s + (size_t) kv * rows * FEW_BLOCK;
        const int n16 = finish_logits(t, s, FEW_BLOCK, kv * rows, rows, b, cover);
        for (int i = kv * rows; i < (kv + 1) * rows; i++, s += FEW_BLOCK) {
            if (row_max(t, i, s, n16)) {
                live[kv] = any = true;
                softmax_exp(s, n16, t->mem.js.m[i], t->mem.js.l + (size_t) i * VW);
            } else {
                memset(s, 0, (size_t) n16 * sizeof(float));
            }
            memset(s + n16, 0, (size_t) (FEW_BLOCK - n16) * sizeof(float));
        }
    }
    if (any && quant_vals(t)) {
        for (int kv = 0; kv < n_kv; kv++) {
            if (live[kv]) {
                few_values_quant(t, b, kv, &v_ahead);
            }
        }
    } else if (any && reads_in_place(c->v_type, c->d_v)) {
        struct few_rows v = { .type = c->v_type, .n_heads = n_kv, .head = c->v_head, .ahead = &v_ahead };
        for (int j = 0; j < b->n; j += FEW_KEYS) {
            few_cached(&v, b, t->v_base, c->v_cell, j);
            few_values(&v, rows, c->d_v, t->mem.s + j, t->mem.js.acc, t->dv);
        }
    } else {
        for (int kv = 0; kv < n_kv; kv++) {
            if (live[kv]) {
                few_values_converted(t, b, kv);
            }
        }
    }
}

static void block_few(struct tile_run * t, const struct key_block * b, const struct key_block * next) {
    for (int j = 0; j < b->n; j += FEW_BLOCK) {
        const struct keys now = block_keys(b, j, FEW_BLOCK);
        const struct keys then =
            j + FEW_BLOCK < b->n ? block_keys(b, j + FEW_BLOCK, FEW_BLOCK) : block_keys(next, 0, FEW_BLOCK);
        keys_few(t, &now, &then);
    }
}

#endif
