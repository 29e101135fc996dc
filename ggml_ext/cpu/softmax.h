/* softmax.h - the online softmax state of one row: empty is m = -INFINITY, l = 0, acc = 0. */
#ifndef PLONG_CPU_SOFTMAX_H
#define PLONG_CPU_SOFTMAX_H

#include "simd.h"

static inline void vec_scale(float * x, float f, int d) {
    const vf v = vf_set1(f);
    for (int i = 0; i < d; i += VW) {
        vf_store(x + i, vf_mul(vf_load(x + i), v));
    }
}

/* Turns n logits (n a multiple of 16, unread keys -INFINITY) into exp(logit - m) in place and updates (m, l, acc).
 * A row without any key so far stays empty. */
static inline void softmax_block(float * s, int n, float * m, float * l, float * acc, int d) {
    vf top = vf_load(s);
    for (int i = VW; i < n; i += VW) {
        top = vf_max(top, vf_load(s + i));
    }
    const float block_max = vf_hmax(top);
    if (block_max > *m) {
        if (*m != -INFINITY) {
            const float f = expf(*m - block_max);
            *l *= f;
            vec_scale(acc, f, d);
        }
        *m = block_max;
    }
    if (*m == -INFINITY) { /* no key yet, or only NaN logits, which the maximum does not show */
        for (int i = 0; i < n; i++) {
            *l   = s[i] != s[i] ? s[i] : *l;
            s[i] = 0.0f;
        }
        return;
    }
    const vf shift = vf_set1(*m);
    vf       sum   = vf_zero();
    for (int i = 0; i < n; i += VW) {
        const vf e = vf_exp(vf_sub(vf_load(s + i), shift));
        vf_store(s + i, e);
        sum = vf_add(sum, e);
    }
    *l += vf_sum(sum);
}

static void softmax_merge(
    float * m_a, float * l_a, float * acc_a, float m_b, float l_b, const float * acc_b, int32_t d) {
    if (m_b == -INFINITY) {
        return;
    }
    const float m  = *m_a > m_b ? *m_a : m_b;
    const float fa = *m_a == -INFINITY ? 0.0f : expf(*m_a - m);
    const float fb = expf(m_b - m);
    *m_a           = m;
    *l_a           = *l_a * fa + l_b * fb;
    for (int i = 0; i < d; i += VW) {
        vf_store(acc_a + i, vf_add(vf_mul(vf_load(acc_a + i), vf_set1(fa)), vf_mul(vf_load(acc_b + i), vf_set1(fb))));
    }
}

#endif
