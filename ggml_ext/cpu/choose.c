/* choose.c - runs the op that chooses keys: it writes the pages of the index that the batch lists, then each thread takes
 * one tile after another. */
#include "cpu/dispatch.h"

#include "ggml-cpu-impl.h"
#include "cpu/trial.h"
#include "lsh.h"

/* Scratch of one thread, in floats and int32. */
struct choosing {
    int64_t              most;    /* pieces */
    struct plong_piece * pieces;  /* [most] */
    float *              weights; /* [most, padded to 16] */
    int32_t *            order;   /* [most] */
    float *              rows;    /* [PLONG_PAGE][d_k], and scratch of the kernel */
    void *               apart;   /* of a trial, or of the exact sums of a choice that is verified */
    void *               verify;
    void *               lsh;
};

static size_t layout(struct choosing * c, uintptr_t base, const struct ggml_tensor * op) {
    const struct ggml_tensor *q = op->src[0], *k = op->src[1], *index = op->src[2], *batch = op->src[3];
    const int64_t runs = batch->ne[0] / (int64_t) (sizeof(struct plong_run) / sizeof(int32_t)); /* at most */
    const int64_t most = plong_pieces_most(k->ne[2], runs);
    const int32_t d_k = (int32_t) k->ne[0], heads = (int32_t) (q->ne[1] / k->ne[1]);
    const bool    hashes = index && index->ne[0] != (int64_t) plong_page_bytes(PLONG_INDEX_DIGITS, d_k);
    size_t        kernel = PLONG_PAGE * (size_t) d_k * sizeof(float);
    for (int i = 0; plong_kernels[i]; i++) {
        const size_t n = plong_kernels[i]->weigh_scratch(d_k, heads, most, op->src[5] != NULL);
        kernel         = n > kernel ? n : kernel;
    }
    const bool   indexed = index != NULL;
    const size_t trial = trial_scratch(op, heads, most), exact = indexed ? apart_scratch(op, heads, most) : 0;
    uintptr_t    at = base;
    c->most         = most;
    c->pieces       = take_scratch(&at, (size_t) most * sizeof(*c->pieces));
    c->weights      = take_scratch(&at, ((size_t) most + 16) * sizeof(float));
    c->order        = take_scratch(&at, (size_t) most * sizeof(int32_t));
    c->rows         = take_scratch(&at, kernel);
    c->apart        = take_scratch(&at, trial > exact ? trial : exact);
    c->verify = take_scratch(&at, indexed ? plong_verify_scratch(d_k, (int32_t) op->src[7]->ne[0], heads, most) : 0);
    c->lsh    = take_scratch(&at, hashes ? plong_lsh_scratch(d_k, k->ne[2], runs, heads) : 0);
    return at - base;
}

size_t plong_cpu_choose_scratch(const struct ggml_tensor * op, int n_threads) {
    struct choosing c;
    return layout(&c, 0, op) * (size_t) n_threads + 64;
}

/* plong_summing.add */
static void add_exact(void * self, const struct plong_piece * pieces, const int32_t * which, int32_t n) {
    apart_add(self, pieces, which, n);
}

/* Chooses the keys of a tile. Exact sums of a choice that is verified are in float32, so that all instruction sets choose the
 * same. */
static void choose_keys(
    const struct plong_call * call, const struct plong_kernel * kernel, struct ggml_threadpool * pool, int32_t tile,
    const struct choosing * mine) {
    const struct plong_tile *  t     = plong_work_tiles(call->work) + tile;
    const struct plong_phase * phase = plong_batch_phase(call->batch, t->phase);
    const int32_t              n     = plong_pieces(call, t, mine->pieces);
    GGML_ASSERT(n <= mine->most);
    const bool               few      = plong_phase_verifies(phase) && plong_verify_few(mine->pieces, n);
    const bool               verifies = plong_phase_verifies(phase) && !few;
    struct trial             trial;
    struct apart             exact     = { .kernel = plong_kernel_at(PLONG_PRECISION_F32), .pool = pool };
    const struct plong_trial tries     = { trial_add, &trial };
    struct plong_verifying   verifying = { .exact   = { .add = add_exact, .self = &exact },
                                           .to_f32  = kernel->to_f32,
                                           .scratch = mine->verify };
    bool                     begun     = false;
    if (plong_phase_hashed(phase, n) > 0) {
        plong_choose_hashed(call, tile, mine->pieces, n, mine->lsh);
        return;
    }
    if (plong_phase_weighs(phase) && !few) {
        verifying.terms = kernel->weigh(call, t, mine->pieces, n, mine->weights, mine->rows);
        begun           = trial_begin(&trial, call, pool, t, mine->most, mine->apart);
    }
    if (verifies) {
        apart_begin(&exact, call, t, (struct apart_tokens) { 0, 1, 1 }, mine->most, mine->apart);
        verifying.exact.state  = exact.state;
        verifying.exact.stride = plong_pad32(call->d_v);
    }
    const struct plong_candidates from = { mine->pieces, mine->weights, n, mine->order };
    plong_choose(call, tile, &from, begun ? &tries : NULL, verifies ? &verifying : NULL);
}

void plong_cpu_choose(const struct ggml_compute_params * params, struct ggml_tensor * op) {
    const struct plong_call     call   = plong_choosing_call_of(op);
    const struct plong_kernel * kernel = plong_kernel_in_use();
    const struct plong_page *   pages  = plong_batch_pages(call.batch);
    const struct plong_tile *   tiles  = plong_work_tiles(call.work);
    const int32_t               n_kv   = call.n_head / call.n_group;
    struct choosing             mine;
    const size_t                size = layout(&mine, 0, op);
    layout(&mine, (((uintptr_t) params->wdata + 63) & ~(uintptr_t) 63) + (size_t) params->ith * size, op);
    GGML_ASSERT(params->wsize >= size * (size_t) params->nth + 64);
    GGML_ASSERT((size_t) op->ne[0] >= plong_work_choice_words(call.work));
    for (int64_t i = params->ith; i < (int64_t) call.batch->n_pages * n_kv; i += params->nth) {
        plong_page_write(&call, pages[i / n_kv], (int32_t) (i % n_kv), mine.rows);
    }
    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, 0);
    }
    ggml_barrier(params->threadpool);
    for (int64_t i; (i = ggml_threadpool_chunk_add(params->threadpool, 1)) < call.work->n_tiles;) {
        if (tiles[i].choice_room > 0) {
            choose_keys(&call, kernel, params->threadpool, (int32_t) i, &mine);
        }
    }
    if (call.work->n_options > 0) {
        ggml_barrier(params->threadpool);
        if (params->ith == 0) {
            plong_choices_settle(&call);
        }
    }
}
