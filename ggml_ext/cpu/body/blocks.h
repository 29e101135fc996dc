/* blocks.h - the state of one tile being computed, and what narrow and wide jobs have in common. */
#ifndef PLONG_CPU_BODY_BLOCKS_H
#define PLONG_CPU_BODY_BLOCKS_H

#include "cpu/body/narrow_f32.h"
#include "cpu/body/jobs.h"
#include "cpu/body/softmax.h"
#include "cpu/body/zones.h"

#define CAP_REACH 40.0f /* tanh(y) is 1 in float32 where e^2y is above 2^25 */

/* Scratch of one thread, laid out by tile_layout(). dk, dv: head sizes padded to 32; rows: of the tile. */
struct tile_mem {
    elem *               k;      /* a packed key block */
    elem *               v;      /* a packed value block */
    float *              s;      /* logits: [SUB][CHUNK], or [2 kv heads, alternating][PLONG_NARROW][NARROW_BLOCK] */
    float *              s_zone; /* the same for another zone, for one sub */
    elem *               p;      /* [SUB][BLOCK] probabilities, unless they are written in place of the logits */
    float *              f32;    /* [BLOCK][max(dk, dv)] rows of a block in float32 */
    float *              stage;  /* [16][max(dk, dv)] */
    uint8_t *            digits; /* queries of a narrow job in integers: the narrow_keys.h of an instruction set */
    float *              q;      /* [zones][rows][dk] */
    elem *               packed; /* [zones][rows, padded to SUB][dk]: q for wide jobs */
    void *               jq;     /* [zones][job rows, padded to SUB][dk]: elem, or float if the job is narrow */
    struct plong_softmax js;     /* the job's rows, padded to SUB; l is [rows][VW] */
    struct plong_softmax span;   /* rows of the tile; l is [rows] */
    float *              reach;  /* [rows] the largest sum |q| over all zones; valid when packed is */
    float *              shift;  /* [rows] of the job: fixed_shift() */
    float *              counts; /* [job.n_counts][PLONG_KEYS] added to the logits of a block's keys */
    float *              slope;  /* [rows] of the job, of logits in base 2; not set without ALiBi */
    struct sub *         subs;
    elem *               k_near; /* as k, rotated to true positions, for maps that store keys folded */
    float *              angles; /* [n_rot/2][2] */
};

struct tile_run {
    const struct plong_call *  call;
    const struct plong_queue * queue;
    const struct plong_item *  item;
    const struct plong_tile *  tile; /* the item's */
    struct tile_mem            mem;
    struct job                 job;        /* the job of the last keys, with its part of mem */
    bool                       one_stream; /* plong_one_stream() */
    const int32_t *            block_pos;  /* positions of the block that mem.counts is for */
    bool                       packs;      /* mem.packed and mem.reach are valid */
    const void *               jq;         /* queries of the job: mem.jq, or mem.packed as it is */
    size_t                     jq_zone;    /* elements between two zones of them */
    int32_t                    map;        /* enum plong_map */
    int                        dk, dv;
    size_t                     k_bytes, v_bytes; /* bytes of a cached row */
    float                      skip;
    const char *               k_base; /* first kv head of the tile, cell 0 */
    const char *               v_base;
    const char *               k_then; /* the same for the next block, which may be another tile's */
    const char *               v_then;
    const struct key_block *   next;       /* that block */
    int                        prefetched; /* keys of it that wide blocks have prefetched */
};

/* Finds the rows of keys in the cache. */
static void cache_rows(const void ** row, const struct keys * b, const char * base, size_t cell) {
    for (int j = 0; j < b->n; j++) {
        row[j] = base + (size_t) b->cell[j] * cell;
    }
}

/* Converts rows to f32 at t->mem.f32, [n][pad] */
static void float_rows(struct tile_run * t, const void ** row, int n, int32_t type, int d, int pad) {
    for (int j = 0; j < n; j++) {
        float * x = t->mem.f32 + (size_t) j * pad;
        row_to_f32(type, row[j], x, d);
        row[j] = x;
    }
}

/* Converts K rows to f32 at t->mem.f32, unfolded for the near zone */
static void near_rows(struct tile_run * t, const void ** row, const struct keys * b) {
    float_rows(t, row, b->n, t->call->k_type, t->call->d_k, t->dk);
    for (int j = 0; j < b->n; j++) {
        unfold_key(t->call, b->pos[j], t->mem.f32 + (size_t) j * t->dk, t->mem.angles);
    }
}

/* The zones of the pairs of a sub with some keys. */
static void zone_span(
    const struct tile_run * t, const struct sub * sub, const struct keys * b, int * first, int * last) {
    *first = plong_map_zone(&t->call->batch->rope, t->map, sub->p0, b->pos[b->n - 1]);
    *last  = plong_map_zone(&t->call->batch->rope, t->map, sub->p1, b->pos[0]);
}

/* Copies the logits of pairs in zone z from s_zone. */
static void merge_zone(struct tile_run * t, const struct logits x, const struct keys * b, int z) {
    for (int i = 0; i < x.rows; i++) {
        for (int j = 0; j < b->n; j++) {
            if (plong_map_zone(&t->call->batch->rope, t->map, t->job.rows[x.i0 + i].pos, b->pos[j]) == z) {
                x.s[i * x.stride + j] = t->mem.s_zone[i * x.stride + j];
            }
        }
    }
}

/* Subtracts slope * distance from the logits. */
static void add_alibi(struct tile_run * t, const struct logits x, const struct keys * b) {
    for (int i = 0; i < x.rows; i++) {
        const float   slope = t->mem.slope[x.i0 + i];
        const int32_t p     = t->job.rows[x.i0 + i].pos;
        for (int j = 0; j < b->n; j++) {
            x.s[i * x.stride + j] += slope * (float) (b->pos[j] - p);
        }
    }
}

/* Caps the logits, which are in base 2: x becomes c * tanh(x / c). tanh(y) = 1 - 2 / (e^2y + 1) */
static void cap_logits(struct tile_run * t, const struct logits x, int n) {
    const float c   = t->call->params.soft_cap * 1.44269504f;
    const vf    cap = vf_set1(c), one = vf_set1(1.0f), two = vf_set1(2.0f), f = vf_set1(2 * 1.44269504f / c);
    for (int i = 0; i < x.rows; i++) {
        float * s = x.s + i * x.stride;
        for (int j = 0; j < n; j += VW) {
            const vf most = vf_max(vf_set1(-CAP_REACH), vf_mul(vf_load(s + j), f)); /* NaN stays NaN */
            const vf e    = vf_exp2(vf_sub(vf_zero(), vf_max(vf_set1(-CAP_REACH), vf_sub(vf_zero(), most))));
            vf_store(s + j, vf_mul(cap, vf_sub(one, vf_div(two, vf_add(e, one)))));
        }
    }
}

/* Masks the logits and pads their rows; returns the padded length, a multiple of `pad`. Not inlined, since gcc would
 * then keep fewer vectors of wide jobs in registers. */
__attribute__((noinline)) static int finish_logits(
    struct tile_run * t, const struct logits x, const struct keys * b, enum cover cover, int pad) {
    const int n = (b->n + pad - 1) & -pad;
    if (t->call->params.soft_cap > 0.0f) {
        cap_logits(t, x, n);
    }
    if (t->call->params.max_bias > 0.0f) {
        add_alibi(t, x, b);
    }
    if (cover == COVER_SOME) {
        job_mask(&t->job, t->call, t->tile, x, b);
    }
    for (int i = 0; i < x.rows && b->n < n; i++) {
        for (int j = b->n; j < n; j++) {
            x.s[i * x.stride + j] = -INFINITY;
        }
    }
    return n;
}

/* Adds log2 of how often the keys b count to the logits s[n] of row i of the job. n is a multiple of 16. */
PLONG_INLINE void add_count(struct tile_run * t, int i, float * s, int n, const struct keys * b) {
    const int c = t->job.rows[i].count;
    if (c >= 0) {
        const float * x = t->mem.counts + (size_t) c * PLONG_KEYS + (b->pos - t->block_pos);
#pragma GCC unroll 4
        for (int j = 0; j < n; j += VW) { /* adding it to the padding has no effect */
            vf_store(s + j, vf_add(vf_load(s + j), vf_load(x + j)));
        }
    }
}

PLONG_INLINE bool row_max(struct tile_run * t, int i, const float * s, int n) {
    return softmax_max(
        s, n, t->skip, &t->mem.js.m[i], t->mem.js.l + (size_t) i * VW, t->mem.js.acc + (size_t) i * t->dv, t->dv);
}

#endif
