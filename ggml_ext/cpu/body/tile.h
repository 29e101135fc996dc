/*
 * tile.h - computes one query tile: block by block of its keys, logits, mask, online softmax and P*V. It is compiled
 * once per instruction set by a file that is the recipe (amx/amx.c, avx2/avx2.c, ...). That file defines
 *
 *     PLONG_ISA_STRING       its name, for users
 *     PLONG_NAME(x)          x with its name, for the linker
 *     PLONG_F32              the kernel that runs when float32 is requested: itself if it computes in float32
 *     isa_usable()           whether this processor has it
 *
 * and includes its vector of floats (the contract is in simd/vf.h), its wide part (wide.h), its narrow part
 * (narrow_jobs.h, or narrow_none.h if it has none), its part for values inside keys (latent.h or latent_none.h), its part
 * for the index of keys (scores.h, or scores_plain.h if it has none), then this file.
 */
#include "cpu/kernel.h"
#include "cpu/body/narrow.h"
#include "cpu/body/wide.h"
#include "cpu/body/keys.h"
#include "cpu/body/queries.h"
#include "cpu/body/weigh.h"

/* Lays the parts of scratch out from `base` on, and returns their size. */
static size_t tile_layout(struct tile_mem * t, uintptr_t base, int32_t d_k, int32_t d_v, int32_t rows, bool maps) {
    const size_t dk = (size_t) plong_pad32(d_k), dv = (size_t) plong_pad32(d_v), d = dk > dv ? dk : dv;
    const size_t zones = maps ? PLONG_ZONES : 1, padded = (size_t) rows + SUB;
    const size_t narrow_rows = (size_t) (rows < PLONG_NARROW_ROWS ? rows : PLONG_NARROW_ROWS);
    const size_t wide = padded * sizeof(elem), narrow = narrow_rows * sizeof(float);
    const size_t wide_s = SUB * CHUNK * sizeof(float);
    _Static_assert(32 % PAD == 0, "count_weights() pads to 32");
    _Static_assert(
        SUB * CHUNK >= 2 * PLONG_NARROW * NARROW_BLOCK, "logits of two kv heads have room in those of a sub");
    uintptr_t at = base;
    t->k         = take_scratch(&at, BLOCK * dk * sizeof(elem));
    t->v         = take_scratch(&at, BLOCK * dv * sizeof(elem));
    t->s         = take_scratch(&at, (1 + AHEAD) * wide_s);
    t->s_zone    = take_scratch(&at, maps ? wide_s : 0);
    t->p         = take_scratch(&at, SUB * BLOCK * sizeof(elem));
    t->f32       = take_scratch(&at, BLOCK * d * sizeof(float));
    t->stage     = take_scratch(&at, 16 * d * sizeof(float));
    t->digits    = take_scratch(&at, narrow_rows * quant_size((int) dk));
    t->q         = take_scratch(&at, zones * (size_t) rows * dk * sizeof(float));
    t->packed    = take_scratch(&at, zones * dk * wide);
    t->jq        = take_scratch(&at, zones * dk * (wide > narrow ? wide : narrow));
    t->js.m      = take_scratch(&at, padded * sizeof(float));
    t->js.l      = take_scratch(&at, padded * VW * sizeof(float));
    t->js.acc    = take_scratch(&at, padded * dv * sizeof(float));
    t->span.m    = take_scratch(&at, (size_t) rows * sizeof(float));
    t->span.l    = take_scratch(&at, (size_t) rows * sizeof(float));
    t->span.acc  = take_scratch(&at, (size_t) rows * dv * sizeof(float));
    t->reach     = take_scratch(&at, (size_t) rows * sizeof(float));
    t->shift     = take_scratch(&at, (size_t) rows * sizeof(float));
    t->counts    = take_scratch(&at, PLONG_MAX_COUNTS * PLONG_KEYS * sizeof(float));
    t->slope     = take_scratch(&at, (size_t) rows * sizeof(float));
    t->subs      = take_scratch(&at, (size_t) rows * sizeof(struct sub));
    t->k_near    = take_scratch(&at, maps ? BLOCK * dk * sizeof(elem) : 0);
    t->angles    = take_scratch(&at, maps ? PLONG_MAX_ROT * sizeof(float) : 0);
    return at - base;
}

static size_t tile_scratch(int32_t d_k, int32_t d_v, int32_t rows, bool maps) {
    struct tile_mem t;
    return tile_layout(&t, 0, d_k, d_v, rows, maps);
}

/* ---- jobs ----------------------------------------------------------------------------------------------------- */

static void run_job_begin(struct tile_run * t, int32_t readers) {
    struct job * job = &t->job;
    job->subs        = t->mem.subs;
    job_begin(job, t->call, t->tile, readers, SUB);
    job_queries(t);
    for (int i = 0; i < job->n && t->call->params.max_bias > 0.0f; i++) {
        const int32_t head = plong_row_head(t->call->work, t->tile, job->rows[i].row);
        t->mem.slope[i]    = plong_alibi_slope(t->call->params.max_bias, t->call->n_head, head) * 1.44269504f;
    }
    if (job->narrow) {
        narrow_begin(t);
    } else {
        wide_config();
    }
}

/* Computes how often the keys of a block count for the job's rows. */
static void run_counts(struct tile_run * t, const struct key_block * b) {
    t->block_pos = b->pos;
    for (int i = 0; i < t->job.n_counts; i++) {
        count_weights(&t->job, i, b->pos, b->n, t->mem.counts + (size_t) i * PLONG_KEYS);
    }
}

/* Empties the state of the job's rows. */
static void run_job_reset(struct tile_run * t) {
    const size_t padded = (size_t) (t->job.narrow ? t->job.n : padded_rows(t->job.n));
    for (int i = 0; i < t->job.n; i++) {
        t->mem.js.m[i]  = -INFINITY;
        t->mem.shift[i] = INFINITY;
    }
    memset(t->mem.js.l, 0, padded * VW * sizeof(float));
    memset(t->mem.js.acc, 0, padded * t->dv * sizeof(float));
}

static void run_job_end(struct tile_run * t, struct plong_softmax * into) {
    const struct job * job = &t->job;
    for (int i = 0; i < job->n; i++) {
        const int32_t r = job->rows[i].row;
        softmax_merge(
            &into->m[r], &into->l[r], into->acc + (size_t) r * t->dv, t->mem.js.m[i] + job->log2_weight,
            vf_sum(vf_load(t->mem.js.l + (size_t) i * VW)), t->mem.js.acc + (size_t) i * t->dv, t->dv);
    }
}

/* ---- the tile ------------------------------------------------------------------------------------------------- */

/* The beginning of the cache for a tile: its stream and first kv head. */
static void tile_bases(const struct plong_call * c, const struct plong_tile * tile, const char ** k, const char ** v) {
    const int kv = tile->head / c->n_group;
    *k           = c->k + tile->stream * c->k_stream + kv * c->k_head;
    *v           = c->v + tile->stream * c->v_stream + kv * c->v_head;
}

/* The first keys of this thread's work after a span, for prefetching; an empty block if there is none. */
static void peek_keys(struct tile_run * t, int32_t span, int cap, struct key_block * b) {
    struct plong_item next = *t->item;
    struct key_walk   walk;
    b->n = 0;
    if (span + 1 < t->item->span_end) {
        next.span_beg = span + 1;
    } else if (!plong_queue_peek(t->queue, &next) || next.tile->n_kv != t->tile->n_kv) {
        return;
    }
    tile_bases(t->call, next.tile, &t->k_then, &t->v_then);
    key_walk_begin(&walk, t->call, &next, next.span_beg, cap);
    key_walk_next(&walk, b);
}

/* Empties the state of a span of several jobs: these are added to it first, so that a span gives the same bits by itself as
 * after others. */
static void run_span_reset(struct tile_run * t) {
    for (int32_t r = 0; r < plong_tile_rows(t->tile); r++) {
        t->mem.span.m[r] = -INFINITY;
        t->mem.span.l[r] = 0.0f;
    }
}

/* Adds the keys of a span of several jobs. */
static void run_span_end(const struct tile_run * t, struct plong_softmax * into) {
    const struct plong_softmax * s = &t->mem.span;
    for (int32_t r = 0; r < plong_tile_rows(t->tile); r++) {
        float *acc = into->acc + (size_t) r * t->dv, *own = s->acc + (size_t) r * t->dv;
        softmax_merge(&into->m[r], &into->l[r], acc, s->m[r], s->l[r], own, t->dv);
    }
}

/* Adds the keys of one span. A row's result depends only on its spans: not on the other rows of the tile, the rest of
 * the batch, or the number of threads. */
static void run_span(struct tile_run * t, int32_t span, struct plong_softmax * state) {
    struct key_walk    walk;
    struct key_block   blocks[2];
    struct key_block * b      = &blocks[0];
    struct key_block * next   = &blocks[1];
    bool               in_job = false, several = false;
    const int          cap = t->tile->n_kv > 1 ? NARROW_BLOCK : BLOCK;
    t->k_then              = t->k_base;
    t->v_then              = t->v_base;
    key_walk_begin(&walk, t->call, t->item, span, cap);
    for (bool more = key_walk_next(&walk, b); more;) {
        more             = key_walk_next(&walk, next);
        const bool ready = plong_work_readers(t->call->work) + b->range->readers == t->job.readers;
        const bool same  = ready && b->range->log2_weight == t->job.log2_weight;
        if (in_job && !same) {
            if (!several) {
                run_span_reset(t);
            }
            several = true;
            run_job_end(t, &t->mem.span);
        }
        if (!ready) {
            run_job_begin(t, b->range->readers);
        }
        if (!in_job || !same) {
            run_job_reset(t);
            t->job.log2_weight = b->range->log2_weight;
            in_job             = true;
        }
        if (!more && (t->job.narrow || takes_latent(t) || t->one_stream)) {
            peek_keys(t, span, cap, next);
        }
        run_counts(t, b);
        t->job.sinks_end = b->range->sinks_end;
        if (t->job.narrow) {
            block_narrow(t, b, next);
        } else if (takes_latent(t)) {
            block_latent(t, b, next);
        } else {
            block_wide(t, b, next);
        }
        struct key_block * swap = b;
        b                       = next;
        next                    = swap;
    }
    if (in_job) {
        run_job_end(t, several ? &t->mem.span : state);
    }
    if (several) {
        run_span_end(t, state);
    }
}

static void tile_run(
    const struct plong_call * call, const struct plong_queue * queue, const struct plong_item * item,
    struct plong_softmax * state, void * scratch) {
    const struct plong_tile * tile = item->tile;
    struct tile_run           t    = {
        .call       = call,
        .queue      = queue,
        .item       = item,
        .tile       = tile,
        .one_stream = plong_one_stream(),
        .map        = call->params.n_rot > 0 ? call->batch->rope.map : PLONG_MAP_ABSOLUTE,
        .dk         = plong_pad32(call->d_k),
        .dv         = plong_pad32(call->d_v),
        .k_bytes    = ggml_row_size((enum ggml_type) call->k_type, call->d_k),
        .v_bytes    = ggml_row_size((enum ggml_type) call->v_type, call->d_v),
        .skip       = call->batch->precision == PLONG_PRECISION_F32 ? INFINITY : SKIP,
    };
    tile_bases(call, tile, &t.k_base, &t.v_base);
    tile_layout(&t.mem, (uintptr_t) scratch, call->d_k, call->d_v, plong_tile_rows(tile), call->table != NULL);
    memset(t.mem.p, 0, SUB * BLOCK * sizeof(elem)); /* rows of the padding */
    memset(t.mem.s, 0, (1 + AHEAD) * SUB * CHUNK * sizeof(float));
    load_queries(call, tile, t.map, t.mem.q, t.mem.angles);

    wide_enter();
    for (int32_t span = item->span_beg; span < item->span_end; span++) {
        run_span(&t, span, state);
    }
    wide_leave();
}

const struct plong_kernel PLONG_NAME(plong_kernel) = {
    .name    = PLONG_ISA_STRING,
    .usable  = isa_usable,
    .f32     = &PLONG_F32,
    .scratch = tile_scratch,
    .run     = tile_run,
    .merge   = softmax_merge,
    .to_f32  = row_to_f32,

    .weigh_scratch = weigh_scratch,
    .weigh         = weigh,
};
