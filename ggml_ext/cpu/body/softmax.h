/* softmax.h - online softmax in base 2, on blocks of logits. */
#ifndef PLONG_CPU_BODY_SOFTMAX_H
#define PLONG_CPU_BODY_SOFTMAX_H

#include "cpu/kernel.h"

#define LAZY 8.0f  /* the maximum is only raised when a logit exceeds it by this much: a float has room for 2^8 */
#define SKIP 30.0f /* logits this much below the maximum cannot matter: 131,072 of them weigh 2^-13 */

/* What wide_fixed() did. FIXED_SKIP: none of the keys matters. FIXED_FAILED: the running maximum must be raised, or the
 * row is out of fixed point's range. Only FIXED_DONE has written anything. */
enum fixed { FIXED_SKIP, FIXED_DONE, FIXED_FAILED };

static inline void vec_scale(float * x, float f, int d) {
    const vf v = vf_set1(f);
    for (int i = 0; i < d; i += VW) {
        vf_store(x + i, vf_mul(vf_load(x + i), v));
    }
}

/* Includes the maximum of a block of n logits (n a multiple of 16) in m, rounded up to a whole number, so that scaling
 * the sums l[VW] (one per lane) and acc rounds nothing, and fixed point can use it. Returns false if the block cannot
 * matter to this row: it has no key, or all are `skip` below the maximum. */
PLONG_INLINE bool softmax_max(const float * s, int n, float skip, float * m, float * l, float * acc, int d) {
    vf top = vf_load(s);
#pragma GCC unroll 4
    for (int i = VW; i < n; i += VW) {
        top = vf_max(top, vf_load(s + i));
    }
    if (vf_any_gt(top, vf_set1(*m + LAZY))) {
        const float max = ceilf(vf_hmax(top));
        if (*m != -INFINITY) {
            const float f = exp2f(*m - max);
            vec_scale(l, f, VW);
            vec_scale(acc, f, d);
        }
        *m = max;
        return true;
    }
    if (*m == -INFINITY) { /* there is no key yet, or only NaN logits, which the maximum does not show */
        for (int i = 0; i < n; i++) {
            l[0] = s[i] != s[i] ? s[i] : l[0];
        }
        return false;
    }
    return vf_any_gt(top, vf_set1(*m - skip));
}

/* s[n] becomes 2^(s - m), added to l[VW] */
PLONG_INLINE void softmax_exp(float * s, int n, float m, float * l) {
    const vf shift = vf_set1(m);
    vf       sum   = vf_load(l);
    for (int i = 0; i < n; i += VW) {
        const vf e = vf_exp2(vf_sub(vf_load(s + i), shift));
        vf_store(s + i, e);
        sum = vf_add(sum, e);
    }
    vf_store(l, sum);
}

static void softmax_merge(
    float * m_a, float * l_a, float * acc_a, float m_b, float l_b, const float * acc_b, int32_t d) {
    if (m_b == -INFINITY) {
        *l_a += l_b; /* 0 or NaN */
        return;
    }
    if (*m_a == -INFINITY) { /* acc_a may be anything */
        *m_a = m_b;
        *l_a += l_b;
        memcpy(acc_a, acc_b, (size_t) d * sizeof(float));
        return;
    }
    const bool  grows = m_b > *m_a; /* the other factor is 1 */
    const float m = grows ? m_b : *m_a, fa = grows ? exp2f(*m_a - m) : 1.0f, fb = grows ? 1.0f : exp2f(m_b - m);
    *l_a = *l_a * fa + l_b * fb;
    *m_a = m;
    for (int i = 0; i < d; i += VW) {
        vf_store(acc_a + i, vf_add(vf_mul(vf_load(acc_a + i), vf_set1(fa)), vf_mul(vf_load(acc_b + i), vf_set1(fb))));
    }
}

#endif
