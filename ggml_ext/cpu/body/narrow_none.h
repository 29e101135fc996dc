/* narrow_none.h - for instruction sets that read a quantized cache as floats, with narrow_f32.h. */
#ifndef PLONG_CPU_BODY_NARROW_NONE_H
#define PLONG_CPU_BODY_NARROW_NONE_H

#include "cpu/body/narrow_keys.h"

static inline size_t quant_size(int d) { return (void) d, 0; }

static bool quant_keys(const struct tile_run * t) {
    (void) t;
    return false;
}

static bool quant_vals(const struct tile_run * t) { return quant_keys(t); }

static void narrow_begin(struct tile_run * t) { (void) t; }

static void narrow_logits_quant(struct tile_run * t, struct narrow_keys * x, int kv, float * s) {
    (void) t, (void) x, (void) kv, (void) s;
}

static void narrow_values_quant(struct tile_run * t, struct narrow_keys * x, int kv, struct values_out out) {
    (void) t, (void) x, (void) kv, (void) out;
}

#endif
