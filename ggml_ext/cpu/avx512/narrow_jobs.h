/* narrow_jobs.h - narrow jobs on a quantized cache, computed in the cache's own integers. The instruction set's narrow parts
 * come before it. */
#ifndef PLONG_CPU_AVX512_NARROW_JOBS_H
#define PLONG_CPU_AVX512_NARROW_JOBS_H

#include "cpu/avx512/narrow_quant.h"
#include "cpu/body/narrow_keys.h"

static bool quant_keys(const struct tile_run * t) {
    return t->map == PLONG_MAP_ABSOLUTE && narrow_is_quant(t->call->k_type) && t->call->d_k % 32 == 0;
}

static bool quant_vals(const struct tile_run * t) { return narrow_is_quant(t->call->v_type) && t->call->d_v % 32 == 0; }

/* Sets up a narrow job: the queries' digits, one kv head after the other. */
static void narrow_begin(struct tile_run * t) {
    const int rows = t->job.sub_rows, d = t->call->d_k;
    uint8_t * out = t->mem.digits;
    quant_config(t->call->k_type);
    for (int kv = 0; kv < t->job.n_sub && quant_keys(t); kv++, out += quant_size(d)) {
        quant_queries(t->call->k_type, (const float *) t->jq + (size_t) (kv * rows) * t->dk, rows, t->dk, d, out);
    }
}

static void narrow_logits_quant(struct tile_run * t, struct narrow_keys * x, int kv, float * s) {
    const struct plong_call * c = t->call;
    uint8_t *                 q = t->mem.digits + (size_t) kv * quant_size(c->d_k);
    struct quant_rows         k;
    quant_rows(&k, x->k, x->keys->n, x->k_step, kv * c->k_head, c->k_type);
    quant_logits(&k, q, t->job.sub_rows, c->d_k, s, &x->k_ahead);
}

static void narrow_values_quant(struct tile_run * t, struct narrow_keys * x, int kv, struct values_out out) {
    const struct plong_call * c = t->call;
    struct quant_rows         v;
    quant_rows(&v, x->v, x->keys->n, 0, kv * c->v_head, c->v_type);
    quant_values(&v, t->job.sub_rows, c->d_v, out, &x->v_ahead);
}

#endif
