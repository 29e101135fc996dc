/* wide.h - many query rows against a packed key block, in AMX tiles: bf16 operands, float32 sums. Packed data is read
 * by loads that bypass the L1 cache, which is left to logits, probabilities and accumulators. */
#ifndef PLONG_CPU_AMX_WIDE_H
#define PLONG_CPU_AMX_WIDE_H

#define BLOCK 256 /* keys that are packed at a time: the row length of probabilities */
#define CHUNK 64  /* keys between one softmax and the next: the row length of logits */
#define AHEAD 1   /* the next logits are computed during the softmax of these */
#define SUB   32  /* rows: two tiles */
#define PAD   32  /* logits of a chunk are padded to a multiple of this */

#include "cpu/avx512/weights_bf16.h"

struct tile_config {
    uint8_t  palette, start_row, zero[14];
    uint16_t bytes[16];
    uint8_t  rows[16];
};

/* The thread's tile configuration must be restored: upstream's matrix products set it only once. */
static _Thread_local struct tile_config callers_config;

static inline void wide_enter(void) { _tile_storeconfig(&callers_config); }

static inline void wide_config(void) {
    struct tile_config c = { .palette = 1 };
    for (int i = 0; i < 8; i++) {
        c.bytes[i] = 64;
        c.rows[i]  = 16;
    }
    __asm__ volatile("" : : "r"(&c) : "memory"); /* for gcc 12 ldtilecfg reads 8 bytes: it drops the other stores */
    _tile_loadconfig(&c);
}

static inline void wide_leave(void) {
    __asm__ volatile("" : : "r"(&callers_config) : "memory");
    _tile_loadconfig(&callers_config);
}

/* Unfinished logits: s[SUB][CHUNK] = q[SUB][pad32(d)] * k^T. The matrix unit and the vector units only work at the same
 * time if their instructions alternate closely, so this proceeds in quarters of a step, one between two rows of
 * softmax. */
struct wide_work {
    const elem * q;
    const elem * k;     /* the current 32 keys */
    float *      s;     /* their logits */
    float *      last;  /* logits of the previous 32 keys, of which three tiles are still to be stored; NULL: none */
    int          ds, i; /* dims, and the next one */
    int          left;  /* keys left, including the current ones */
};

/* Keys j0 .. j0 + n, padded to a multiple of 32 */
static inline struct wide_work wide_begin(const elem * q, const elem * k, int rows, int j0, int n, int d, float * s) {
    (void) rows; /* a smaller tile takes as long */
    const int ds = plong_pad32(d);
    return (struct wide_work) { .q = q, .k = k + (size_t) j0 * ds, .s = s, .ds = ds, .left = n };
}

/* Stores of a tile only overlap with products if they come one at a time. So those of the last keys are placed between
 * the first products of the next. x: 0, 1, 2, 3, one after the other. */
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

/* Finishes the logits; the tiles are free again. */
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

/* Prefetches 4 rows of the next accumulators, which would otherwise be read from L2. */
PLONG_INLINE void wide_prefetch(const float ** next, int dv) {
    for (int x = 0; x < 4; x++, *next += dv) {
        __builtin_prefetch(*next, 0, 3);
        __builtin_prefetch(*next + 16, 0, 3);
    }
}

/* acc[SUB][dv] += p[SUB][j0 ..] * v for keys j0 .. j0 + n, padded to 32 */
static void wide_values(const elem * p, const elem * v, int rows, int j0, int n, int dv, float * acc) {
    (void) rows;
    const size_t ps = BLOCK * sizeof(elem), as = (size_t) dv * sizeof(float);
    float *      last = NULL;
    p += j0;
    v += (size_t) (j0 / 32) * 2 * TILE;
    for (int i = 0; i < dv; i += 32, acc += 32, v += (BLOCK / 32) * 2 * TILE) {
        const float * next    = acc + 32;
        const int     fetches = i + 32 < dv ? SUB / 8 * 32 : 0; /* all rows in the first keys */
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
            if (j <= fetches) {
                wide_prefetch(&next, dv);
            }
            _tile_dpbf16ps(0, 4, 6);
            _tile_stream_loadd(7, b + TILE, 64);
            _tile_dpbf16ps(1, 4, 7);
            if (j <= fetches) {
                wide_prefetch(&next, dv);
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
