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

/* Converts n keys to out [n][d]; returns whether all are tame. */
PLONG_INLINE bool latent_convert(
    const int32_t type, const void * const * row, int n, int d, elem * out, struct prefetch_queue * ahead) {
    __m512i top = _mm512_setzero_si512();
    for (int j = 0; j < n; j++, out += d) {
        if (j + NARROW_NEAR < n) {
            prefetch_near(row[j + NARROW_NEAR], narrow_bytes(type, d));
        }
        prefetch_rows_of(ahead, j % 4 == 0);
        for (int i = 0; i < d; i += 32) {
            const __m512i x = latent_load(type, row[j], i);
            top             = _mm512_max_epu16(top, _mm512_add_epi16(x, x)); /* |x| * 2 as integers */
            _mm512_store_si512(out + i, x);
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

/* s[rows][CHUNK] = q[rows][d] * k[n][d]; k has rows up to the next multiple of 4. */
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
    switch (rows) {
        case 12: bf16_block(12, n, p, BLOCK, v, acc, dv, true); break;
        case 11: bf16_block(11, n, p, BLOCK, v, acc, dv, true); break;
        case 10: bf16_block(10, n, p, BLOCK, v, acc, dv, true); break;
        case 9: bf16_block(9, n, p, BLOCK, v, acc, dv, true); break;
        case 8: bf16_block(8, n, p, BLOCK, v, acc, dv, true); break;
        case 7: bf16_block(7, n, p, BLOCK, v, acc, dv, true); break;
        case 6: bf16_block(6, n, p, BLOCK, v, acc, dv, true); break;
        case 5: bf16_block(5, n, p, BLOCK, v, acc, dv, true); break;
        case 4: bf16_block(4, n, p, BLOCK, v, acc, dv, true); break;
        case 3: bf16_block(3, n, p, BLOCK, v, acc, dv, true); break;
        case 2: bf16_block(2, n, p, BLOCK, v, acc, dv, true); break;
        default: bf16_block(1, n, p, BLOCK, v, acc, dv, true); break;
    }
}

/* acc[rows][dv] += p[rows][n] * v, n a multiple of 32 */
static void latent_values(
    int rows, const elem * p, const elem * v, int n, int dv, float * acc, struct prefetch_queue * ahead) {
    const int step = latent_step(rows, MR);
    for (int i = 0; i < dv; i += 32, v += (BLOCK / 32) * 2 * TILE) {
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
    struct tile_run * t, const struct keys * b, const struct latent_rows x, enum cover cover, bool tame, bool * packed,
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
    if (live && !*packed) {
        const void * row[CHUNK];
        for (int j = 0; j < b->n; j++) {
            row[j] = t->mem.k + (size_t) j * t->dk;
        }
        wide_pack_values(t->mem.v, GGML_TYPE_BF16, row, b->n, t->call->d_v, t->mem.stage);
        *packed = true;
    }
    if (live) {
        latent_values(x.n, p, t->mem.v, n, t->dv, t->mem.js.acc + (size_t) x.i0 * t->dv, ahead);
    }
}

/* Computes up to CHUNK keys; next: the following ones, in the cells at k_next. */
static void latent_keys(struct tile_run * t, const struct keys * b, const struct keys * next, const char * k_next) {
    const struct plong_call * c = t->call;
    struct prefetch_queue ahead = prefetch_queue(next->cell, next->n, 1, k_next, c->k_cell, t->k_bytes, t->one_stream);
    bool                  converted = false, packed = false, tame = false;
    for (int sub = 0; sub < t->job.n_sub; sub++) {
        const enum cover cover = job_cover(&t->job, &t->job.subs[sub], b);
        const int        i0 = sub * SUB, left = t->job.n - i0;
        if (cover == COVER_NONE) {
            continue;
        }
        if (!converted) {
            const void * row[CHUNK];
            cache_rows(row, b, t->k_base, c->k_cell);
            FOR_TYPE(tame = latent_convert, c->k_type, row, b->n, t->dk, t->mem.k, &ahead)
            converted = true;
        }
        const struct latent_rows x = { (const elem *) t->jq + (size_t) i0 * t->dk, i0, left < SUB ? left : SUB };
        latent_part(t, b, x, cover, tame, &packed, &ahead);
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
