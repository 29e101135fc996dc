/* wide_amx.h - many query rows against a packed key block, in AMX tiles: bf16 operands, float32 sums. What is packed is read
 * by loads that leave the L1 cache to logits, probabilities and accumulators. */
#ifndef PLONG_CPU_WIDE_H
#define PLONG_CPU_WIDE_H

#include "pack_amx.h"

#define CHUNK 64 /* keys between one softmax and the next: the row length of logits */
#define AHEAD 1  /* the next logits are made while these go through the softmax */
#define SUB   32 /* rows: two tiles */
#define PAD   32 /* logits of a chunk are padded to a multiple of this */

struct tile_config {
    uint8_t  palette, start_row, zero[14];
    uint16_t bytes[16];
    uint8_t  rows[16];
};

/* The thread's tile configuration belongs to whoever set it: upstream's matrix products do so once. */
static _Thread_local struct tile_config callers_config;

static inline void wide_enter(void) { _tile_storeconfig(&callers_config); }

static inline void wide_config(void) {
    struct tile_config c = { .palette = 1 };
    for (int i = 0; i < 8; i++) {
        c.bytes[i] = 64;
        c.rows[i]  = 16;
    }
    __asm__ volatile("" : : "r"(&c) : "memory"); /* gcc 12 takes ldtilecfg to read 8 bytes and drops the other stores */
    _tile_loadconfig(&c);
}

static inline void wide_leave(void) {
    __asm__ volatile("" : : "r"(&callers_config) : "memory");
    _tile_loadconfig(&callers_config);
}

static inline void wide_pack_query(elem * dst, const float * q, int dk) {
    for (int i = 0; i < dk; i += 32) {
        _mm512_storeu_si512(dst + i, bf16_of(q + i, q + i + 16));
    }
}

/* Logits in the making: s[SUB][CHUNK] = q[SUB][pad32(d)] * k^T. The matrix unit works beside the vector units only where
 * their instructions alternate closely, so this goes on in quarters of a step, one between a row of softmax and the next. */
struct wide_work {
    const elem * q;
    const elem * k;     /* the present 32 keys */
    float *      s;     /* their logits */
    float *      last;  /* those of the 32 keys before, of which three tiles are still to be stored; NULL: none */
    int          ds, i; /* dims, and the next of them */
    int          left;  /* keys still to come, the present ones among them */
};

/* Keys j0 .. j0 + n, and what pads them to a multiple of 32 */
static inline struct wide_work wide_begin(const elem * q, const elem * k, int j0, int n, int d, float * s) {
    const int ds = plong_pad32(d);
    return (struct wide_work) { .q = q, .k = k + (size_t) j0 * ds, .s = s, .ds = ds, .left = n };
}

/* Stores of a tile only overlap with products when they come one at a time: those of the last keys go between the first
 * products of the next. x: 0, 1, 2, 3 in turn. */
PLONG_INLINE void wide_quarter(struct wide_work * w, const int x) {
    const size_t qs = (size_t) w->ds * sizeof(elem), ss = CHUNK * sizeof(float);
    const elem * q     = w->q + w->i;
    const elem * k     = w->k + w->i / 16 * TILE;
    const bool   first = w->i == 0, store = first && w->last;
    if (x == 0) {
        if (first) {
            _tile_zero(0);
        }
        _tile_loadd(4, q, qs);
        _tile_stream_loadd(6, k, 64);
        _tile_dpbf16ps(0, 4, 6);
    } else if (x == 1) {
        if (store) {
            _tile_stored(1, w->last + 16, ss);
        }
        if (first) {
            _tile_zero(1);
        }
        _tile_stream_loadd(7, k + TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
    } else if (x == 2) {
        if (store) {
            _tile_stored(2, w->last + 16 * CHUNK, ss);
        }
        if (first) {
            _tile_zero(2);
        }
        _tile_loadd(5, q + 16 * w->ds, qs);
        _tile_dpbf16ps(2, 5, 6);
    } else {
        if (store) {
            _tile_stored(3, w->last + 16 * CHUNK + 16, ss);
        }
        if (first) {
            _tile_zero(3);
        }
        _tile_dpbf16ps(3, 5, 7);
        w->i += 32;
        if (w->i == w->ds) {
            _tile_stored(0, w->s, ss);
            w->last = w->s;
            w->k += 32 * w->ds;
            w->s += 32;
            w->i = 0;
            w->left -= 32;
        }
    }
}

/* The logits are there, and the tiles free. */
static inline void wide_end(struct wide_work * w) {
    const size_t ss = CHUNK * sizeof(float);
    while (w->left > 0) {
        wide_quarter(w, 0);
        wide_quarter(w, 1);
        wide_quarter(w, 2);
        wide_quarter(w, 3);
    }
    if (w->last) {
        _tile_stored(1, w->last + 16, ss);
        _tile_stored(2, w->last + 16 * CHUNK, ss);
        _tile_stored(3, w->last + 16 * CHUNK + 16, ss);
        w->last = NULL;
    }
}

static inline elem * wide_probabilities(float * s, elem * p) {
    (void) s;
    return p;
}

/* 2^x for x <= LAZY: minimax of degree 3 on [0, 1), relative error below 8e-5 where bf16 rounds at 2e-3 */
static inline vf exp2_bf16(vf x) {
    const __mmask16 keep = _mm512_cmp_ps_mask(x, _mm512_set1_ps(EXP2_MIN), _CMP_NLT_UQ); /* NaN too */
    const vf        r    = _mm512_reduce_ps(x, 1);                                       /* x - floor(x) */
    vf              y    = _mm512_set1_ps(0.0780245226f);
    y                    = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.226067155f));
    y                    = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.695833541f));
    y                    = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.999925219f));
    return _mm512_maskz_scalef_ps(keep, y, x);
}

/* p[n] *= f, n a multiple of 32 */
static void wide_rescale(elem * p, int n, float f) {
    for (int i = 0; i < n; i += 32) {
        const vf a = vf_mul(vf_bf16(p + i), vf_set1(f)), b = vf_mul(vf_bf16(p + i + 16), vf_set1(f));
        _mm512_storeu_si512(p + i, (__m512i) _mm512_cvtne2ps_pbh(b, a));
    }
}

/* p[n] = e of 32 keys each, and as rounded added to l[VW], so that the weights of a row still add up to one. */
PLONG_INLINE void wide_weights(elem * p, const __m512i * e, int n, float * l) {
    const __m512bh one = (__m512bh) _mm512_set1_epi16(0x3f80);
    vf             sum = vf_load(l);
    for (int i = 0; i < n; i += 32) {
        sum = _mm512_dpbf16_ps(sum, (__m512bh) e[i / 32], one);
        _mm512_storeu_si512(p + i, e[i / 32]);
    }
    vf_store(l, sum);
}

/* p[n] = 2^(s - m) in the order of value_row(); n is 32 or 64 */
PLONG_INLINE void wide_exp(const float * s, elem * p, int n, float m, float * l) {
    const vf      shift = vf_set1(m);
    const __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
    __m512i       e[CHUNK / 32];
    for (int i = 0; i < n; i += 32) {
        const vf      a = exp2_bf16(vf_sub(vf_load(s + i), shift));
        const vf      b = exp2_bf16(vf_sub(vf_load(s + i + 16), shift));
        const __m512i x = (__m512i) _mm512_cvtne2ps_pbh(b, a);
        e[i / 32]       = _mm512_permutexvar_epi64(order, x);
    }
    wide_weights(p, e, n, l);
}

/*
 * The same in fixed point, for rows and keys whose logits cannot overflow it: 32 weights at a time in 16 bits each, the
 * exponent in bf16's place above 8 bits of fraction. 2^f - 1 is f less a correction below 0.087, by the first 6 bits of f;
 * the table has it in 1/256, rounded so that the mean square error is least: 1.2 times that of rounding to bf16 alone.
 */
#define FIXED_ONE   256.0f
#define FIXED_BIAS  (127 * 256)
#define FIXED_REACH 4096.0f /* of sum |q|: with keys below KEYS_TAME logits stay below 2^22 */
#define FIXED_NONE  INFINITY

static const uint8_t fixed_table[64] __attribute__((aligned(64))) = {
    1,  2,  3,  5,  5,  7,  8,  9,  10, 11, 11, 13, 13, 14, 15, 16, 16, 17, 18, 18, 19, 19,
    20, 20, 21, 21, 21, 22, 22, 22, 22, 22, 22, 23, 23, 22, 22, 22, 22, 22, 22, 21, 21, 20,
    20, 20, 19, 18, 18, 17, 16, 16, 14, 14, 13, 12, 10, 10, 8,  7,  6,  4,  3,  2,
};

/* What wide_fixed() adds to the logits of a row. reach: sum |q|. */
static inline float fixed_shift(float m, float reach) {
    return reach < FIXED_REACH && fabsf(m) < FIXED_REACH ? (float) FIXED_BIAS - FIXED_ONE * m : FIXED_NONE;
}

PLONG_INLINE __m512i fixed_logits(const float * s, vf shift) {
    const vf one = vf_set1(FIXED_ONE);
    return _mm512_packus_epi32(
        _mm512_cvtps_epi32(vf_fma(vf_load(s), one, shift)), _mm512_cvtps_epi32(vf_fma(vf_load(s + 16), one, shift)));
}

PLONG_INLINE __m512i fixed_exp(__m512i y) {
    const __m512i table = _mm512_load_si512(fixed_table);
    const __m512i above = _mm512_maskz_permutexvar_epi8(0x5555555555555555, _mm512_srli_epi16(y, 2), table);
    return _mm512_avg_epu16(_mm512_sub_epi16(y, above), _mm512_setzero_si512());
}

enum fixed { FIXED_SKIP, FIXED_DONE, FIXED_FAILED };

/* FIXED_SKIP: none of the keys matters. FIXED_FAILED: the maximum has to follow, or the row is none for this; nothing is
 * written. */
PLONG_INLINE enum fixed wide_fixed(const float * s, elem * p, int n, float shift, float * l) {
    if (shift == FIXED_NONE) {
        return FIXED_FAILED;
    }
    const vf      c    = vf_set1(shift);
    const __m512i y[2] = { fixed_logits(s, c), n > 32 ? fixed_logits(s + 32, c) : _mm512_setzero_si512() };
    const __m512i top  = _mm512_max_epu16(y[0], y[1]);
    if (_mm512_cmpgt_epu16_mask(top, _mm512_set1_epi16((short) (FIXED_BIAS + (int) (LAZY * FIXED_ONE))))) {
        return FIXED_FAILED;
    }
    if (!_mm512_cmpgt_epu16_mask(top, _mm512_set1_epi16((short) (FIXED_BIAS - (int) (SKIP * FIXED_ONE))))) {
        return FIXED_SKIP;
    }
    const __m512i e[2] = { fixed_exp(y[0]), fixed_exp(y[1]) };
    wide_weights(p, e, n, l);
    return FIXED_DONE;
}

/* Asks for 4 rows of the accumulators that come next: they are read from L2 otherwise. */
PLONG_INLINE void wide_ask(const float ** next, int dv) {
    for (int x = 0; x < 4; x++, *next += dv) {
        __builtin_prefetch(*next, 0, 3);
        __builtin_prefetch(*next + 16, 0, 3);
    }
}

/* acc[SUB][dv] += p[SUB][j0 ..] * v for keys j0 .. j0 + n, padded to 32 */
static void wide_values(const elem * p, const elem * v, int j0, int n, int dv, float * acc) {
    const size_t ps = BLOCK * sizeof(elem), as = (size_t) dv * sizeof(float);
    float *      last = NULL;
    p += j0;
    v += (size_t) (j0 / 32) * 2 * TILE;
    for (int i = 0; i < dv; i += 32, acc += 32, v += (BLOCK / 32) * 2 * TILE) {
        const float * next = acc + 32;
        const int     asks = i + 32 < dv ? SUB / 8 * 32 : 0; /* all rows in the first keys */
        _tile_loadd(0, acc, as);
        _tile_loadd(4, p, ps);
        _tile_stream_loadd(6, v, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (last)
            _tile_stored(1, last + 16, as);
        _tile_loadd(1, acc + 16, as);
        _tile_stream_loadd(7, v + TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        if (last)
            _tile_stored(2, last + 16 * dv, as);
        _tile_loadd(2, acc + 16 * dv, as);
        _tile_loadd(5, p + 16 * BLOCK, ps);
        _tile_dpbf16ps(2, 5, 6);
        if (last)
            _tile_stored(3, last + 16 * dv + 16, as);
        _tile_loadd(3, acc + 16 * dv + 16, as);
        _tile_dpbf16ps(3, 5, 7);
        for (int j = 32; j < n; j += 32) {
            const elem * b = v + (size_t) (j / 32) * 2 * TILE;
            _tile_loadd(4, p + j, ps);
            _tile_stream_loadd(6, b, 64);
            if (j <= asks) {
                wide_ask(&next, dv);
            }
            _tile_dpbf16ps(0, 4, 6);
            _tile_stream_loadd(7, b + TILE, 64);
            _tile_dpbf16ps(1, 4, 7);
            if (j <= asks) {
                wide_ask(&next, dv);
            }
            _tile_loadd(5, p + 16 * BLOCK + j, ps);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, acc, as);
        last = acc;
    }
    _tile_stored(1, last + 16, as);
    _tile_stored(2, last + 16 * dv, as);
    _tile_stored(3, last + 16 * dv + 16, as);
}

#endif
