/*
 * latent.h - keys for a job of some tens of rows whose values are the first dims of the keys: decode with multi-head
 * latent attention. Each key is read from memory once and becomes a row of bf16. Logits are products of such rows with
 * rows of queries, so that keys need not be transposed, and values are made from the same rows.
 */
#ifndef PLONG_CPU_AVX512BF16_LATENT_H
#define PLONG_CPU_AVX512BF16_LATENT_H

#include "cpu/body/wide.h"

#define LATENT_MOST 48 /* rows of a job; with more, transposed keys are faster */
#define LATENT_DOTS 6  /* rows whose products with four keys are summed together */

/* 32 dims of CHUNK values, and a cache line, so that columns do not share the sets of the L1 cache */
#define LATENT_COLUMN (CHUNK / 32 * 2 * TILE + 32)

/* Whether the job's values are the first dims of its keys. */
static bool takes_latent(const struct tile_run * t) {
    const struct plong_call * c = t->call;
    return !t->job.narrow && t->job.n <= LATENT_MOST && t->map == PLONG_MAP_ABSOLUTE && plong_v_in_k(c) &&
           c->d_k % 32 == 0 && c->d_v % 32 == 0;
}

PLONG_INLINE __m512i latent_load(const int32_t type, const void * row, int i) {
    const float * x = (const float *) row + i;
    return type == GGML_TYPE_F32 ? bf16_of(x, x + 16) : row_bf16(type, row, i, NULL, false);
}

/* Writes the 32 dims of two keys as values; a column of them is apart from the next. */
PLONG_INLINE void latent_store(elem * v, __m512i a, __m512i b) {
    const __m512i lo = _mm512_set_epi16(
        47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1,
        32, 0);
    _mm512_store_si512(v, _mm512_permutex2var_epi16(a, lo, b));
    _mm512_store_si512(v + TILE, _mm512_permutex2var_epi16(a, _mm512_add_epi16(lo, _mm512_set1_epi16(16)), b));
}

/* Where keys go: as rows, and their first dims as values. */
struct latent_out {
    elem * k; /* [n][d] */
    elem * v; /* [dv / 32][LATENT_COLUMN] */
    int    d, dv;
};

/* Converts n keys, two at a time; missing ones up to a multiple of 32 are zeros. Returns whether all are tame. */
PLONG_INLINE bool latent_convert(
    const int32_t type, const void * const * row, int n, struct latent_out out, struct prefetch_queue * ahead) {
    const __m512i none = _mm512_setzero_si512();
    __m512i       top  = none; /* |x| * 2 as integers */
    for (int j = 0; j < ((n + 31) & ~31); j += 2) {
        elem * k = out.k + (size_t) j * out.d;
        elem * v = out.v + j / 32 * 2 * TILE + value_row(j % 32) * 32;
        for (int near = j + NARROW_NEAR; near < j + NARROW_NEAR + 2 && near < n; near++) {
            prefetch_near(row[near], narrow_bytes(type, out.d));
        }
        prefetch_rows_of(ahead, j % 4 == 0);
        for (int i = 0; i < out.d; i += 32, v += LATENT_COLUMN) {
            const __m512i a = j < n ? latent_load(type, row[j], i) : none;
            const __m512i b = j + 1 < n ? latent_load(type, row[j + 1], i) : none;
            top             = _mm512_max_epu16(top, _mm512_max_epu16(_mm512_add_epi16(a, a), _mm512_add_epi16(b, b)));
            _mm512_store_si512(k + i, a);
            _mm512_store_si512(k + out.d + i, b);
            if (i < out.dv) {
                latent_store(v, a, b);
            }
        }
    }
    return _mm512_cmpge_epu16_mask(top, _mm512_set1_epi16((short) (2 * KEYS_TAME))) == 0;
}

/* s[rows][CHUNK] = q[rows][d] * four keys k[4][d] */
PLONG_INLINE void latent_dots(const int rows, const elem * k, const elem * q, int d, float * s) {
    vf sum[LATENT_DOTS][4];
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < 4; j++) {
            sum[r][j] = vf_zero();
        }
    }
    for (int i = 0; i < d; i += 32) {
        __m512bh x[4];
        for (int j = 0; j < 4; j++) {
            x[j] = (__m512bh) _mm512_load_si512(k + j * d + i);
        }
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            const __m512bh y = (__m512bh) _mm512_loadu_si512(q + r * d + i);
            for (int j = 0; j < 4; j++) {
                sum[r][j] = _mm512_dpbf16_ps(sum[r][j], x[j], y);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        vf_sum4(sum[r][0], sum[r][1], sum[r][2], sum[r][3], s + r * CHUNK);
    }
}

/* The rows of a step, so that all steps are about as large. */
static inline int latent_step(int rows, int most) {
    const int steps = (rows + most - 1) / most;
    return (rows + steps - 1) / steps;
}

/* s[rows][CHUNK] = q[rows][d] * k[n][d]; k has rows up to the next multiple of 32. */
static void latent_logits(
    int rows, const elem * k, int n, const elem * q, int d, float * s, struct prefetch_queue * ahead) {
    const int step = latent_step(rows, LATENT_DOTS);
    for (int j = 0; j < n; j += 4, k += 4 * d) {
        prefetch_rows_of(ahead, 2);
        for (int r = 0; r < rows; r += step) {
            const elem * x  = q + (size_t) r * d;
            float *      to = s + r * CHUNK + j;
            switch (rows - r < step ? rows - r : step) {
                case 6: latent_dots(6, k, x, d, to); break;
                case 5: latent_dots(5, k, x, d, to); break;
                case 4: latent_dots(4, k, x, d, to); break;
                case 3: latent_dots(3, k, x, d, to); break;
                case 2: latent_dots(2, k, x, d, to); break;
                default: latent_dots(1, k, x, d, to); break;
            }
        }
    }
}

/* acc[rows][32] += p[rows][n] * v */
static void latent_block(int rows, int n, const elem * p, const elem * v, float * acc, int dv) {
    const struct bf16_rows weights = { p, BLOCK };
    switch (rows) {
        case 12: bf16_block(12, n, weights, v, acc, dv, true); break;
        case 11: bf16_block(11, n, weights, v, acc, dv, true); break;
        case 10: bf16_block(10, n, weights, v, acc, dv, true); break;
        case 9: bf16_block(9, n, weights, v, acc, dv, true); break;
        case 8: bf16_block(8, n, weights, v, acc, dv, true); break;
        case 7: bf16_block(7, n, weights, v, acc, dv, true); break;
        case 6: bf16_block(6, n, weights, v, acc, dv, true); break;
        case 5: bf16_block(5, n, weights, v, acc, dv, true); break;
        case 4: bf16_block(4, n, weights, v, acc, dv, true); break;
        case 3: bf16_block(3, n, weights, v, acc, dv, true); break;
        case 2: bf16_block(2, n, weights, v, acc, dv, true); break;
        default: bf16_block(1, n, weights, v, acc, dv, true); break;
    }
}

/* acc[rows][dv] += p[rows][n] * v, n a multiple of 32 */
static void latent_values(
    int rows, const elem * p, const elem * v, int n, int dv, float * acc, struct prefetch_queue * ahead) {
    const int step = latent_step(rows, MR);
    for (int i = 0; i < dv; i += 32, v += LATENT_COLUMN) {
        prefetch_rows_of(ahead, 1);
        for (int r = 0; r < rows; r += step) {
            latent_block(rows - r < step ? rows - r : step, n, p + r * BLOCK, v, acc + r * dv + i, dv);
        }
    }
}

/* The queries of a sub of the job, and its rows. */
struct latent_rows {
    const elem * q;
    int          i0, n;
};

/* Logits, softmax and P*V of some rows for the converted keys k. */
static void latent_part(
    struct tile_run * t, const struct keys * b, const struct latent_rows x, enum cover cover, bool tame,
    struct prefetch_queue * ahead) {
    float * s = t->mem.s;
    elem *  p = t->mem.p;
    latent_logits(x.n, t->mem.k, b->n, x.q, t->dk, s, ahead);
    const int n    = finish_logits(t, (struct logits) { s, CHUNK, x.i0, x.n }, b, cover, PAD);
    bool      live = false;
    for (int i = 0; i < x.n; i++) {
        add_count(t, x.i0 + i, s + i * CHUNK, n, b);
        live |= row_probabilities(t, x.i0 + i, s + i * CHUNK, n, 0, p + i * BLOCK, tame);
    }
    if (live) {
        latent_values(x.n, p, t->mem.v, n, t->dv, t->mem.js.acc + (size_t) x.i0 * t->dv, ahead);
    }
}

/* Computes up to CHUNK keys; next: the following ones, in the cells at k_next. */
static void latent_keys(struct tile_run * t, const struct keys * b, const struct keys * next, const char * k_next) {
    const struct plong_call * c = t->call;
    struct prefetch_queue ahead = prefetch_queue(next->cell, next->n, 1, k_next, c->k_cell, t->k_bytes, t->one_stream);
    bool                  converted = false, tame = false;
    for (int sub = 0; sub < t->job.n_sub; sub++) {
        const enum cover cover = job_cover(&t->job, &t->job.subs[sub], b);
        const int        i0 = sub * SUB, left = t->job.n - i0;
        if (cover == COVER_NONE) {
            continue;
        }
        if (!converted) {
            const void *            row[CHUNK];
            const struct latent_out out = { t->mem.k, t->mem.v, t->dk, t->dv };
            cache_rows(row, b, t->k_base, c->k_cell);
            FOR_TYPE(tame = latent_convert, c->k_type, row, b->n, out, &ahead)
            converted = true;
        }
        const struct latent_rows x = { (const elem *) t->jq + (size_t) i0 * t->dk, i0, left < SUB ? left : SUB };
        latent_part(t, b, x, cover, tame, &ahead);
    }
    prefetch_rows_of(&ahead, CHUNK);
}

static void block_latent(struct tile_run * t, const struct key_block * block, const struct key_block * next) {
    const struct keys b = block_keys(block, 0, BLOCK);
    for (int j = 0, end; j < b.n; j = end) {
        end                    = chunk_end(t, &b, j);
        const struct keys now  = block_keys(block, j, end - j);
        const struct keys then = end < b.n ? block_keys(block, end, CHUNK) : block_keys(next, 0, CHUNK);
        latent_keys(t, &now, &then, end < b.n ? t->k_base : t->k_then);
    }
}

#endif
