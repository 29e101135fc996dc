/*
 * tile.h - one query tile: for each block of keys its logits, mask, online softmax and P*V. Compiled once per ISA by a
 * file that defines PLONG_ISA_* and PLONG_NAME(x), then includes this.
 */
#include "attn.h"
#include "few.h"
#include "gemm.h"
#include "keys.h"
#include "rows.h"
#include "softmax.h"

/* Scratch of one thread, f32, laid out by tile_layout(). */
struct tile_scratch {
    float * q;      /* [zones][PLONG_ROWS][dk] scaled queries, rotated for each zone */
    float * k;      /* [PLONG_KEYS][dk] */
    float * k_near; /* [PLONG_KEYS][dk] rotated to true positions, for maps that store them folded */
    float * kt;     /* [dk][PLONG_KEYS] */
    float * v;      /* [PLONG_KEYS][dv] */
    float * s;      /* [PLONG_ROWS][PLONG_KEYS] logits, then probabilities */
    float * s_zone; /* the same for a second zone */
    float * angles; /* [n_rot/2][2] */
};

/* The rows of a key block, in the cache itself or converted. */
struct row_view {
    int32_t      type; /* f32, f16 or bf16 */
    const void * row[PLONG_KEYS];
};

static size_t tile_layout(struct tile_scratch * t, float * base, int32_t d_k, int32_t d_v) {
    const size_t dk = (size_t) plong_pad16(d_k), dv = (size_t) plong_pad16(d_v);
    const size_t tile    = PLONG_ROWS * PLONG_KEYS;
    const size_t sizes[] = {
        PLONG_KEYS * dk, PLONG_KEYS * dv, PLONG_KEYS * dk, tile, PLONG_ZONES * PLONG_ROWS * dk, PLONG_KEYS * dk, tile,
        PLONG_MAX_ROT
    };
    float ** const parts[] = { &t->k, &t->v, &t->kt, &t->s, &t->q, &t->k_near, &t->s_zone, &t->angles };
    size_t         at      = 0;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        if (base) {
            *parts[i] = base + at;
        }
        at += (sizes[i] + 15) & ~(size_t) 15;
    }
    return at * sizeof(float);
}

static size_t tile_scratch_size(int32_t d_k, int32_t d_v) {
    struct tile_scratch t;
    return tile_layout(&t, NULL, d_k, d_v);
}

/* ---- zones: which rotation of q (and k) gives a pair its distance ---------------------------------------------- */

static inline int zone_of(const struct plong_rope * rope, int32_t map, int32_t p, int32_t t) {
    switch (map) {
        case PLONG_MAP_DCA: {
            const int32_t c = rope->chunk - rope->local;
            const int32_t m = p / c - t / c;
            return m < 0 ? 0 : m > 2 ? 2 : m;
        }
        case PLONG_MAP_SELF_EXTEND: return p - t < rope->local ? 0 : 1;
        case PLONG_MAP_REROPE: return p - t < rope->chunk ? 0 : 1;
        default: return 0;
    }
}

/* Position to which a query at p is rotated for a zone, less the one it was stored at; near zones of folded maps count
 * from ref. */
static inline int64_t zone_query_shift(const struct plong_rope * rope, int32_t map, int zone, int32_t p, int32_t ref) {
    const int64_t stored = plong_rope_stored(rope, p);
    switch (map) {
        case PLONG_MAP_DCA: {
            const int32_t c     = rope->chunk - rope->local;
            const int32_t ahead = (int32_t) stored + c;
            return zone == 0 ? 0 : (zone == 1 && ahead < rope->chunk ? ahead : rope->chunk) - stored;
        }
        case PLONG_MAP_SELF_EXTEND: return zone == 0 ? p - ref - stored : rope->local - rope->local / rope->chunk;
        case PLONG_MAP_REROPE: return zone == 0 ? p - ref : rope->chunk;
        default: return 0;
    }
}

/* Maps that store keys at folded positions unfold them for the near zone. */
static inline bool zone_unfolds(int32_t map, int zone) {
    return zone == 0 && (map == PLONG_MAP_SELF_EXTEND || map == PLONG_MAP_REROPE);
}

/* q[zone][row] for all zones of the map */
static void load_queries(
    const struct plong_call * call, const struct plong_tile * tile, int32_t map, struct tile_scratch * t) {
    const struct plong_rope * rope  = &call->batch->rope;
    const int                 dk    = plong_pad16(call->d_k);
    const int                 zones = map == PLONG_MAP_ABSOLUTE ? 1 : map == PLONG_MAP_DCA ? 3 : 2;
    const int                 had   = call->params.hadamard;
    for (int i = 0; i < tile->n_tok; i++) {
        const int32_t p     = tile->pos + i;
        const float   scale = call->params.scale * plong_rope_logn(rope, p);
        for (int z = 0; z < zones; z++) {
            const int64_t shift = zone_query_shift(rope, map, z, p, tile->pos);
            if (shift) {
                plong_rope_angles(call->table, call->params.n_rot, &shift, 1, t->angles);
            }
            for (int h = 0; h < tile->n_h; h++) {
                float * q = t->q + ((size_t) z * PLONG_ROWS + i * tile->n_h + h) * dk;
                row_to_f32(
                    GGML_TYPE_F32, call->q + (tile->tok + i) * call->q_tok + (tile->head0 + h) * call->q_head, q,
                    call->d_k);
                if (shift) {
                    row_rotate(q, t->angles, call->params.n_rot, call->params.neox);
                }
                if (had && !zone_unfolds(map, z)) {
                    row_hadamard(q, call->d_k, had);
                }
                vec_scale(q, scale, dk);
            }
        }
    }
}

/* k_near from k: back to the basis before the Hadamard transform, then from the stored to the true position less ref */
static void unfold_keys(
    const struct plong_call * call, const struct key_block * b, const struct row_view * k, int32_t ref,
    struct tile_scratch * t, struct row_view * near) {
    const int dk = plong_pad16(call->d_k);
    near->type   = GGML_TYPE_F32;
    for (int j = 0; j < b->n; j++) {
        float *       x     = t->k_near + (size_t) j * dk;
        const int64_t shift = (int64_t) b->pos[j] - ref - plong_rope_stored(&call->batch->rope, b->pos[j]);
        near->row[j]        = x;
        row_to_f32(k->type, k->row[j], x, call->d_k);
        if (call->params.hadamard) {
            row_hadamard(x, call->d_k, call->params.hadamard);
        }
        plong_rope_angles(call->table, call->params.n_rot, &shift, 1, t->angles);
        row_rotate(x, t->angles, call->params.n_rot, call->params.neox);
    }
}

/* ---- logits and mask ------------------------------------------------------------------------------------------ */

/* s[rows][PLONG_KEYS] = q * k^T; columns beyond n are not defined */
static void logits(const float * q, const struct row_view * k, int rows, int n, int dk, float * kt, float * s) {
    if (rows <= FEW_ROWS) {
        few_logits(rows, k->type, k->row, n, dk, q, dk, s);
        return;
    }
    for (int i = 0; i < dk; i++) {
        for (int j = 0; j < PLONG_KEYS; j++) {
            kt[i * PLONG_KEYS + j] = j < n ? ((const float *) k->row[j])[i] : 0.0f;
        }
    }
    gemm(rows, PLONG_KEYS, dk, q, dk, kt, PLONG_KEYS, s, PLONG_KEYS, false);
}

static bool set_block_is_full(
    const struct plong_phase * ph, const struct plong_tile * tile, const struct key_block * b) {
    if (b->pos[b->n - 1] > tile->pos) {
        return false; /* the causal edge */
    }
    const int32_t last = tile->pos + tile->n_tok - 1;
    for (int j = 0; j < b->n; j++) {
        if (!plong_phase_in_set(ph, last, b->pos[j])) {
            return false;
        }
    }
    return true;
}

/* A branch that gives all its keys one weight, whatever else the plan has. */
static bool branch_is_plain(const struct plong_phase * ph) {
    const bool alone = ph->sinks == 0 && ph->window == 0 && ph->global == 0 && ph->dense_below == 0;
    return alone && (ph->weight == PLONG_WEIGHT_COUNT || ph->n_branches == 1);
}

/* Adds log_w, -INFINITY for keys that the row does not read. */
static void mask_block(const struct plong_tile * tile, const struct key_block * b, float * s) {
    const struct plong_phase * ph = tile->phase;
    if (b->branch < 0 && set_block_is_full(ph, tile, b)) {
        return;
    }
    const bool  plain  = b->branch >= 0 && branch_is_plain(ph);
    const float weight = plain && ph->weight == PLONG_WEIGHT_STRIDE ? logf((float) ph->rate[b->branch]) : 0.0f;
    for (int i = 0; i < tile->n_tok; i++) {
        const int32_t p = tile->pos + i;
        for (int h = 0; h < tile->n_h; h++) {
            float *   row  = s + (size_t) (i * tile->n_h + h) * PLONG_KEYS;
            const int head = tile->head0 + h;
            if (plain) {
                const bool    joins = plong_branch_joins(ph, b->branch, p, head);
                const int32_t first = ph->align == PLONG_ALIGN_QUERY ? p - ph->segment[b->branch] + 1 : 0;
                for (int j = 0; j < b->n; j++) {
                    row[j] = joins && b->pos[j] <= p && b->pos[j] >= first ? row[j] + weight : -INFINITY;
                }
            } else if (b->branch >= 0) {
                for (int j = 0; j < b->n; j++) {
                    row[j] += plong_branch_weight(ph, b->branch, p, head, b->pos[j]);
                }
            } else {
                for (int j = 0; j < b->n; j++) {
                    if (b->pos[j] > p || !plong_phase_in_set(ph, p, b->pos[j])) {
                        row[j] = -INFINITY;
                    }
                }
            }
        }
    }
}

/* ---- the tile ------------------------------------------------------------------------------------------------- */

static void block_logits(
    const struct plong_call * call, const struct plong_tile * tile, const struct key_block * b,
    const struct row_view * k, int32_t map, int rows, struct tile_scratch * t) {
    const struct plong_rope * rope = &call->batch->rope;
    const int32_t             p0 = tile->pos, p1 = tile->pos + tile->n_tok - 1;
    const int32_t             t0 = b->pos[0], t1 = b->pos[b->n - 1];
    const int                 dk = plong_pad16(call->d_k);
    const int                 z0 = zone_of(rope, map, p0, t1), z1 = zone_of(rope, map, p1, t0);
    struct row_view           near;
    if (zone_unfolds(map, z0)) {
        unfold_keys(call, b, k, tile->pos, t, &near);
    }
    logits(t->q + (size_t) z0 * PLONG_ROWS * dk, zone_unfolds(map, z0) ? &near : k, rows, b->n, dk, t->kt, t->s);
    for (int z = z0 + 1; z <= z1; z++) {
        logits(t->q + (size_t) z * PLONG_ROWS * dk, k, rows, b->n, dk, t->kt, t->s_zone);
        for (int r = 0; r < rows; r++) {
            const int32_t p = tile->pos + r / tile->n_h;
            for (int j = 0; j < b->n; j++) {
                if (zone_of(rope, map, p, b->pos[j]) == z) {
                    t->s[r * PLONG_KEYS + j] = t->s_zone[r * PLONG_KEYS + j];
                }
            }
        }
    }
}

/* The block's rows: left in the cache when a few query rows read them once, else converted to f32 into `into`. */
static void view_rows(
    struct row_view * view, const struct key_block * b, const char * base, size_t cell, int32_t type, int d, bool few,
    float * into) {
    const bool stays = few && d % 16 == 0 && (type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16);
    view->type       = stays ? type : GGML_TYPE_F32;
    for (int j = 0; j < b->n; j++) {
        const char * row = base + (size_t) b->cell[j] * cell;
        float *      out = into + (size_t) j * plong_pad16(d);
        view->row[j]     = stays ? (const void *) row : out;
        if (!stays) {
            row_to_f32(type, row, out, d);
        }
    }
}

static void tile_run(
    const struct plong_call * call, const struct plong_tile * tile, struct plong_state * state, void * scratch) {
    struct tile_scratch t;
    tile_layout(&t, scratch, call->d_k, call->d_v);
    const int     dv   = plong_pad16(call->d_v);
    const int     rows = tile->n_tok * tile->n_h;
    const bool    few  = rows <= FEW_ROWS;
    const int32_t map  = call->params.n_rot > 0 ? call->batch->rope.map : PLONG_MAP_ABSOLUTE;

    const struct plong_slot * slot   = plong_batch_slots(call->batch) + tile->group->slot;
    const int                 kv     = tile->head0 / call->n_group;
    const char *              k_base = call->k + slot->stream * call->k_stream + kv * call->k_head;
    const char *              v_base = call->v + slot->stream * call->v_stream + kv * call->v_head;

    load_queries(call, tile, map, &t);

    struct key_walk  walk;
    struct key_block b;
    struct row_view  k, v;
    key_walk_begin(&walk, call, tile);
    while (key_walk_next(&walk, &b)) {
        view_rows(&k, &b, k_base, call->k_cell, call->k_type, call->d_k, few, t.k);
        view_rows(&v, &b, v_base, call->v_cell, call->v_type, call->d_v, few, t.v);
        block_logits(call, tile, &b, &k, map, rows, &t);
        mask_block(tile, &b, t.s);
        const int n16 = (b.n + 15) & ~15;
        for (int r = 0; r < rows; r++) {
            float * s = t.s + (size_t) r * PLONG_KEYS;
            for (int j = b.n; j < n16; j++) {
                s[j] = -INFINITY;
            }
            softmax_block(s, n16, &state->m[r], &state->l[r], state->acc + (size_t) r * dv, dv);
        }
        if (few) {
            few_values(rows, v.type, v.row, b.n, dv, t.s, state->acc, dv);
        } else {
            gemm(rows, dv, b.n, t.s, PLONG_KEYS, t.v, dv, state->acc, dv, true);
        }
    }
}

const struct plong_kernel PLONG_NAME(plong_kernel) = {
    .name    = PLONG_ISA_STRING,
    .usable  = isa_usable,
    .scratch = tile_scratch_size,
    .tile    = tile_run,
    .merge   = softmax_merge,
};
