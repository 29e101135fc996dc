/*
 * tile.h - one query tile: its keys block by block, for each block logits, mask, online softmax and P*V. Compiled once
 * per ISA by a file that defines PLONG_ISA_* and PLONG_NAME(x), then includes this.
 */
#include "attn.h"
#include "few.h"
#include "jobs.h"
#include "keys.h"
#include "rows.h"
#include "softmax.h"
#include "zones.h"

#ifdef PLONG_ISA_AMX
#include "wide_amx.h"
#else
#include "wide_f32.h"
#endif

/* Scratch of one thread, laid out by tile_layout(). dk, dv: head sizes padded to 32; rows: of the tile. */
struct tile_mem {
    elem *             k;      /* a packed key block */
    elem *             v;      /* a packed value block */
    float *            s;      /* [SUB, or rows of a tile of few][PLONG_KEYS] logits */
    float *            s_zone; /* the same for another zone, of one kv head */
    elem *             p;      /* [SUB][PLONG_KEYS] probabilities, where they do not take the place of the logits */
    float *            f32;    /* [PLONG_KEYS][max(dk, dv)] rows of a block in float32, with maps 16 more */
    float *            q;      /* [zones][rows][dk] */
    void *             jq;     /* [zones][job rows, padded to SUB][dk]: elem, or float where the job has few rows */
    struct plong_state js;     /* the job's rows, padded to SUB; l is [rows][VW] */
    int32_t *          ints;   /* [4][rows] of the job */
    struct sub *       subs;
    elem *             k_near; /* as k, turned to true positions, for maps that store keys folded */
    float *            angles; /* [n_rot/2][2] */
};

static size_t tile_layout(struct tile_mem * t, char * base, int32_t d_k, int32_t d_v, int32_t rows, bool maps) {
    const size_t dk = (size_t) plong_pad32(d_k), dv = (size_t) plong_pad32(d_v), d = dk > dv ? dk : dv;
    const size_t zones = maps ? PLONG_ZONES : 1, padded = (size_t) rows + SUB;
    const size_t few_rows = (size_t) (rows < PLONG_FEW_ROWS ? rows : PLONG_FEW_ROWS);
    const size_t wide = padded * sizeof(elem), few = few_rows * sizeof(float), s_row = PLONG_KEYS * sizeof(float);
    const size_t sizes[] = {
        PLONG_KEYS * dk * sizeof(elem),
        PLONG_KEYS * dv * sizeof(elem),
        (few_rows > SUB ? few_rows : SUB) * s_row,
        maps ? SUB * s_row : 0,
        SUB * PLONG_KEYS * sizeof(elem),
        (PLONG_KEYS + (maps ? 16 : 0)) * d * sizeof(float),
        zones * (size_t) rows * dk * sizeof(float),
        zones * dk * (wide > few ? wide : few),
        padded * sizeof(float),
        padded * VW * sizeof(float),
        padded * dv * sizeof(float),
        4 * (size_t) rows * sizeof(int32_t),
        (size_t) rows * sizeof(struct sub),
        maps ? PLONG_KEYS * dk * sizeof(elem) : 0,
        maps ? PLONG_MAX_ROT * sizeof(float) : 0,
    };
    void ** const parts[] = {
        (void **) &t->k,      (void **) &t->v,    (void **) &t->s,    (void **) &t->s_zone, (void **) &t->p,
        (void **) &t->f32,    (void **) &t->q,    (void **) &t->jq,   (void **) &t->js.m,   (void **) &t->js.l,
        (void **) &t->js.acc, (void **) &t->ints, (void **) &t->subs, (void **) &t->k_near, (void **) &t->angles,
    };
    size_t at = 0;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        if (base) {
            *parts[i] = base + at;
        }
        at += (sizes[i] + 63) & ~(size_t) 63;
    }
    return at;
}

static size_t tile_scratch(int32_t d_k, int32_t d_v, int32_t rows, bool maps) {
    struct tile_mem t;
    return tile_layout(&t, NULL, d_k, d_v, rows, maps);
}

/* One tile being computed. */
struct tile_run {
    const struct plong_call * call;
    const struct plong_tile * tile;
    struct tile_mem           mem;
    struct job                job;
    size_t                    jq_zone; /* elements from one zone of mem.jq to the next */
    int32_t                   map;     /* enum plong_map */
    int                       dk, dv;
    size_t                    k_bytes, v_bytes; /* of a cached row */
    float                     skip;
    const char *              k_base; /* first kv head of the tile, cell 0 */
    const char *              v_base;
};

/* ---- jobs ----------------------------------------------------------------------------------------------------- */

static void run_job_begin(struct tile_run * t, const struct tile_range * range) {
    struct job * job  = &t->job;
    const int    rows = plong_tile_rows(t->tile);
    job->row          = t->mem.ints;
    job->pos          = t->mem.ints + rows;
    job->lo           = t->mem.ints + 2 * rows;
    job->hi           = t->mem.ints + 3 * rows;
    job->subs         = t->mem.subs;
    job_begin(job, t->call, t->tile, range, SUB);
    const int padded = job->few ? job->n : (job->n + SUB - 1) / SUB * SUB;
    t->jq_zone       = (size_t) padded * t->dk;
    for (int z = 0; z < zone_count(t->map); z++) {
        for (int i = 0; i < padded; i++) {
            const float * q  = t->mem.q + ((size_t) z * rows + (i < job->n ? job->row[i] : 0)) * t->dk;
            const size_t  at = z * t->jq_zone + (size_t) i * t->dk;
            if (job->few) {
                memcpy((float *) t->mem.jq + at, q, (size_t) t->dk * sizeof(float));
            } else { /* rows of the padding are computed and never looked at */
                wide_pack_query((elem *) t->mem.jq + at, q, t->dk);
            }
        }
    }
    for (int i = 0; i < job->n; i++) {
        t->mem.js.m[i] = -INFINITY;
    }
    memset(t->mem.js.l, 0, (size_t) padded * VW * sizeof(float));
    memset(t->mem.js.acc, 0, (size_t) padded * t->dv * sizeof(float));
}

static void run_job_end(struct tile_run * t, struct plong_state * into) {
    const struct job * job = &t->job;
    for (int i = 0; i < job->n; i++) {
        const int32_t r = job->row[i];
        softmax_merge(
            &into->m[r], &into->l[r], into->acc + (size_t) r * t->dv, t->mem.js.m[i] + job->weight,
            vf_sum(vf_load(t->mem.js.l + (size_t) i * VW)), t->mem.js.acc + (size_t) i * t->dv, t->dv);
    }
}

/* ---- one block ------------------------------------------------------------------------------------------------ */

/* Rows of a block in the cache. */
static void cache_rows(const void ** row, const struct key_block * b, const char * base, size_t cell) {
    for (int j = 0; j < b->n; j++) {
        row[j] = base + (size_t) b->cell[j] * cell;
    }
}

/* Rows of a block in f32 at t->mem.f32, [n][pad] */
static void float_rows(struct tile_run * t, const void ** row, int n, int32_t type, int d, int pad) {
    for (int j = 0; j < n; j++) {
        float * x = t->mem.f32 + (size_t) j * pad;
        row_to_f32(type, row[j], x, d);
        row[j] = x;
    }
}

/* The block's K rows unfolded for the near zone, in f32 at t->mem.f32 */
static void near_rows(struct tile_run * t, const void ** row, const struct key_block * b) {
    float_rows(t, row, b->n, t->call->k_type, t->call->d_k, t->dk);
    for (int j = 0; j < b->n; j++) {
        unfold_key(t->call, b->pos[j], t->tile->pos, t->mem.f32 + (size_t) j * t->dk, t->mem.angles);
    }
}

/* The logits of rows i0 .. take what s_zone has for the pairs of zone z. s: as finish_logits() */
static void merge_zone(struct tile_run * t, float * s, int i0, int rows, const struct key_block * b, int z) {
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < b->n; j++) {
            if (zone_of(&t->call->batch->rope, t->map, t->job.pos[i0 + i], b->pos[j]) == z) {
                s[i * PLONG_KEYS + j] = t->mem.s_zone[i * PLONG_KEYS + j];
            }
        }
    }
}

/* Masks the logits s [rows][PLONG_KEYS] and pads them to a multiple of 16, which it returns. */
static int finish_logits(
    struct tile_run * t, float * s, int i0, int rows, const struct key_block * b, enum cover cover) {
    const int n16 = (b->n + 15) & ~15;
    if (cover == COVER_SOME) {
        job_mask(&t->job, t->call, t->tile, i0, rows, b, s);
    }
    for (int i = 0; i < rows && b->n < n16; i++) {
        for (int j = b->n; j < n16; j++) {
            s[i * PLONG_KEYS + j] = -INFINITY;
        }
    }
    return n16;
}

static bool row_max(struct tile_run * t, int i, const float * s, int n) {
    return softmax_max(
        s, n, t->skip, &t->mem.js.m[i], t->mem.js.l + (size_t) i * VW, t->mem.js.acc + (size_t) i * t->dv, t->dv);
}

static bool reads_in_place(int32_t type, int d) {
    return d % 16 == 0 && (type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16);
}

/* Keys j0 .. of the block as they lie in the cache, FEW_KEYS at most */
static void few_cached(struct few_rows * x, const struct key_block * b, const char * base, size_t cell, int j0) {
    x->n = b->n - j0 < FEW_KEYS ? b->n - j0 : FEW_KEYS;
    for (int j = 0; j < x->n; j++) {
        x->row[j] = base + (size_t) b->cell[j0 + j] * cell;
    }
}

/* Rows j0 .. j0 + n of one head, that were converted to f32 at t->mem.f32 */
static void few_converted(struct few_rows * x, const float * f32, int j0, int n, int pad) {
    *x = (struct few_rows) { .type = GGML_TYPE_F32, .n = n - j0 < FEW_KEYS ? n - j0 : FEW_KEYS, .n_heads = 1 };
    for (int j = 0; j < x->n; j++) {
        x->row[j] = (const char *) (f32 + (size_t) (j0 + j) * pad);
    }
}

/* Logits of the block where a head's keys must be converted, or turned, first. */
static void few_logits_converted(struct tile_run * t, const struct key_block * b, int kv) {
    const struct plong_call * c    = t->call;
    const struct sub *        sub  = &t->job.subs[kv];
    const int                 rows = t->job.sub_rows, i0 = kv * rows;
    float *                   s = t->mem.s + (size_t) i0 * PLONG_KEYS;
    const void *              x[PLONG_KEYS];
    struct few_rows           k;
    const int                 z0 = zone_of(&c->batch->rope, t->map, sub->p0, b->pos[b->n - 1]);
    const int                 z1 = zone_of(&c->batch->rope, t->map, sub->p1, b->pos[0]);
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
            merge_zone(t, s, i0, rows, b, z);
        }
    }
}

static void few_values_converted(struct tile_run * t, const struct key_block * b, int kv) {
    const struct plong_call * c    = t->call;
    const int                 rows = t->job.sub_rows, i0 = kv * rows;
    const float *             p = t->mem.s + (size_t) i0 * PLONG_KEYS;
    const void *              x[PLONG_KEYS];
    struct few_rows           v;
    cache_rows(x, b, t->v_base + kv * c->v_head, c->v_cell);
    float_rows(t, x, b->n, c->v_type, c->d_v, t->dv);
    for (int j = 0; j < b->n; j += FEW_KEYS) {
        few_converted(&v, t->mem.f32, j, b->n, t->dv);
        few_values(&v, rows, plong_pad16(c->d_v), p + j, t->mem.js.acc + (size_t) i0 * t->dv, t->dv);
    }
}

/* All kv heads of the tile side by side: all of them read the same keys, and their rows lie side by side in the cache. */
static void block_few(struct tile_run * t, const struct key_block * b, const struct key_block * next) {
    const struct plong_call * c     = t->call;
    const enum cover          cover = job_cover(&t->job, &t->job.subs[0], b);
    const int                 rows = t->job.sub_rows, n_kv = t->job.n_sub;
    if (cover == COVER_NONE) {
        return;
    }
    if (t->map == PLONG_MAP_ABSOLUTE && reads_in_place(c->k_type, c->d_k)) {
        struct few_ahead ahead = few_ahead(next->cell, next->n, n_kv, t->k_base, c->k_cell, c->k_head, t->k_bytes);
        struct few_rows  k     = { .type = c->k_type, .n_heads = n_kv, .head = c->k_head, .ahead = &ahead };
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
        float *   s   = t->mem.s + (size_t) kv * rows * PLONG_KEYS;
        const int n16 = finish_logits(t, s, kv * rows, rows, b, cover);
        for (int i = 0; i < rows; i++, s += PLONG_KEYS) {
            if (row_max(t, kv * rows + i, s, n16)) {
                live[kv] = any = true;
                softmax_exp(s, n16, t->mem.js.m[kv * rows + i], t->mem.js.l + (size_t) (kv * rows + i) * VW);
            } else {
                memset(s, 0, (size_t) n16 * sizeof(float));
            }
        }
    }
    if (any && reads_in_place(c->v_type, c->d_v)) {
        struct few_ahead ahead = few_ahead(next->cell, next->n, n_kv, t->v_base, c->v_cell, c->v_head, t->v_bytes);
        struct few_rows  v     = { .type = c->v_type, .n_heads = n_kv, .head = c->v_head, .ahead = &ahead };
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

static void block_wide(struct tile_run * t, const struct key_block * b) {
    const struct plong_call * c      = t->call;
    bool                      packed = false, packed_near = false, packed_values = false;
    const void *              k[PLONG_KEYS];
    const void *              x[PLONG_KEYS];
    cache_rows(k, b, t->k_base, c->k_cell);
    for (int n = 0; n < t->job.n_sub; n++) {
        const struct sub * sub = &t->job.subs[n];
        const int          i0 = n * SUB, rows = t->job.n - i0 < SUB ? t->job.n - i0 : SUB;
        const enum cover   cover = job_cover(&t->job, sub, b);
        if (cover == COVER_NONE) {
            continue;
        }
        const int z0 = zone_of(&c->batch->rope, t->map, sub->p0, b->pos[b->n - 1]);
        const int z1 = zone_of(&c->batch->rope, t->map, sub->p1, b->pos[0]);
        for (int z = z0; z <= z1; z++) {
            const bool near = zone_unfolds(t->map, z);
            if (near && !packed_near) {
                memcpy(x, k, (size_t) b->n * sizeof(*x));
                near_rows(t, x, b);
                wide_pack_keys(t->mem.k_near, GGML_TYPE_F32, x, b->n, c->d_k, t->mem.f32 + (size_t) PLONG_KEYS * t->dk);
            } else if (!near && !packed) {
                wide_pack_keys(t->mem.k, c->k_type, k, b->n, c->d_k, t->mem.f32);
            }
            packed_near |= near;
            packed |= !near;
            const elem * q = (const elem *) t->mem.jq + z * t->jq_zone + (size_t) i0 * t->dk;
            wide_logits(q, near ? t->mem.k_near : t->mem.k, b->n, c->d_k, z == z0 ? t->mem.s : t->mem.s_zone);
            if (z > z0) {
                merge_zone(t, t->mem.s, i0, rows, b, z);
            }
        }
        const int n16 = finish_logits(t, t->mem.s, i0, rows, b, cover);
        elem *    p   = wide_probabilities(t->mem.s, t->mem.p);
        bool      any = false;
        for (int i = 0; i < rows; i++) {
            float * s = t->mem.s + i * PLONG_KEYS;
            if (row_max(t, i0 + i, s, n16)) {
                any = true;
                wide_exp(s, p + i * PLONG_KEYS, n16, t->mem.js.m[i0 + i], t->mem.js.l + (size_t) (i0 + i) * VW);
            } else {
                memset(p + i * PLONG_KEYS, 0, (size_t) ((n16 + 31) & ~31) * sizeof(elem));
            }
        }
        if (any) {
            if (!packed_values) {
                cache_rows(x, b, t->v_base, c->v_cell);
                wide_pack_values(t->mem.v, c->v_type, x, b->n, c->d_v, t->mem.f32);
                packed_values = true;
            }
            wide_values(p, t->mem.v, n16, t->dv, t->mem.js.acc + (size_t) i0 * t->dv);
        }
    }
}

/* ---- the tile ------------------------------------------------------------------------------------------------- */

static void tile_compute(
    const struct plong_call * call, const struct plong_tile * tile, struct plong_state * state, void * scratch) {
    const struct plong_slot * slot = plong_batch_slots(call->batch) + tile->group->slot;
    const int                 kv   = tile->head0 / call->n_group;
    struct tile_run           t    = {
        .call    = call,
        .tile    = tile,
        .map     = call->params.n_rot > 0 ? call->batch->rope.map : PLONG_MAP_ABSOLUTE,
        .dk      = plong_pad32(call->d_k),
        .dv      = plong_pad32(call->d_v),
        .k_bytes = ggml_row_size((enum ggml_type) call->k_type, call->d_k),
        .v_bytes = ggml_row_size((enum ggml_type) call->v_type, call->d_v),
        .skip    = call->batch->precision == PLONG_PRECISION_F32 ? INFINITY : SKIP,
        .k_base  = call->k + slot->stream * call->k_stream + kv * call->k_head,
        .v_base  = call->v + slot->stream * call->v_stream + kv * call->v_head,
    };
    tile_layout(&t.mem, scratch, call->d_k, call->d_v, plong_tile_rows(tile), call->table != NULL);
    memset(t.mem.p, 0, SUB * PLONG_KEYS * sizeof(elem)); /* rows of the padding */
    memset(t.mem.s, 0, SUB * PLONG_KEYS * sizeof(float));
    load_queries(call, tile, t.map, t.mem.q, t.mem.angles);

    struct key_walk    walk;
    struct key_block   blocks[2];
    struct key_block * b      = &blocks[0];
    struct key_block * next   = &blocks[1];
    bool               in_job = false;
    key_walk_begin(&walk, call, tile, tile->n_kv > 1 ? PLONG_KEYS / 2 : PLONG_KEYS);
    wide_enter();
    for (bool more = key_walk_next(&walk, b); more;) {
        more                            = key_walk_next(&walk, next);
        const struct tile_range * range = &walk.range[b->range];
        const bool                same = in_job && range->range.branch == t.job.branch && range->offset == t.job.offset;
        if (!same) {
            if (in_job) {
                run_job_end(&t, state);
            }
            run_job_begin(&t, range);
            in_job = true;
        }
        if (!more) {
            next->n = 0;
        }
        if (t.job.few) {
            block_few(&t, b, next);
        } else {
            block_wide(&t, b);
        }
        struct key_block * swap = b;
        b                       = next;
        next                    = swap;
    }
    if (in_job) {
        run_job_end(&t, state);
    }
    wide_leave();
}

const struct plong_kernel PLONG_NAME(plong_kernel) = {
    .name   = PLONG_ISA_STRING,
    .usable = isa_usable,
#ifdef PLONG_ISA_AMX
    .f32 = &plong_kernel_avx512,
#else
    .f32 = &PLONG_NAME(plong_kernel),
#endif
    .scratch = tile_scratch,
    .tile    = tile_compute,
    .merge   = softmax_merge,
};
