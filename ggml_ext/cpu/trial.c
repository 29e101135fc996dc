/* trial.c - the error that a choice of keys has at the checks of a tile. */
#include "cpu/trial.h"

#include <math.h>

size_t trial_scratch(const struct ggml_tensor * op, int32_t heads, int64_t pieces) {
    return op->src[8] != NULL ? apart_scratch(op, heads * PLONG_TILE_CHECKS, pieces) : 0;
}

bool trial_begin(
    struct trial * t, const struct plong_call * call, struct ggml_threadpool * pool, const struct plong_tile * tile,
    int64_t pieces, void * scratch) {
    int32_t token;
    *t = (struct trial) { .call = call, .checks = { .kernel = plong_kernel_at(call->batch->precision), .pool = pool } };
    if (!call->exact || !plong_phase_grows(call->batch, tile->phase)) {
        return false;
    }
    t->n_checks = plong_tile_checks(call, tile, &t->first, &token);
    if (t->n_checks == 0) {
        return false;
    }
    apart_begin(
        &t->checks, call, tile, (struct apart_tokens) { token, t->n_checks, call->batch->plan.check }, pieces, scratch);
    return true;
}

/* The squares of exact - sparse and of exact, of one row. */
static void add_row(const struct trial * t, int32_t row, double * error, double * norm) {
    const struct apart * a = &t->checks;
    const int32_t        d = a->call.d_v, n_h = a->tile->n_h, head = a->tile->head + row % n_h;
    const float *        exact =
        t->call->exact + ((size_t) (t->first + row / n_h) * (size_t) a->call.n_head + (size_t) head) * (size_t) d;
    const float * acc   = a->state.acc + (size_t) row * (size_t) plong_pad32(d);
    const float   sum   = a->state.l[row] + plong_sink_weight(&a->call, head, a->state.m[row]);
    const float   scale = sum > 0.0f ? 1.0f / sum : 0.0f;
    float         apart = 0.0f, length = 0.0f;
    for (int32_t i = 0; i < d; i++) {
        const float x = exact[i] - acc[i] * scale;
        apart += x * x;
        length += exact[i] * exact[i];
    }
    *error += (double) apart;
    *norm += (double) length;
}

float trial_add(void * self, const struct plong_piece * pieces, const int32_t * which, int32_t n) {
    struct trial * t     = self;
    const int32_t  n_h   = t->checks.tile->n_h;
    float          worst = 0.0f;
    apart_add(&t->checks, pieces, which, n);
    for (int32_t check = 0; check < t->n_checks; check++) {
        double error = 0, norm = 0;
        for (int32_t h = 0; h < n_h; h++) {
            add_row(t, check * n_h + h, &error, &norm);
        }
        const float found = norm > 0 ? (float) sqrt(error / norm) : 0.0f;
        worst             = found > worst ? found : worst; /* one that is no number asks for no more keys */
    }
    return worst;
}
