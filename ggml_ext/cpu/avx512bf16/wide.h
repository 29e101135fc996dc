/* wide.h - many query rows against a packed key block, by AVX-512's products of bf16 pairs: two keys, or two dims, per
 * instruction and lane, where float32 has one. Sums are float32. */
#ifndef PLONG_CPU_AVX512BF16_WIDE_H
#define PLONG_CPU_AVX512BF16_WIDE_H

#define BLOCK 256 /* keys that are packed at a time: the row length of probabilities */
#define CHUNK 64  /* keys between one softmax and the next: the row length of logits */
#define SUB   48  /* rows whose logits and probabilities stay in the L1 cache: a multiple of MR */
#define PAD   32  /* logits of a chunk are padded to a multiple of this */

#include "cpu/avx512/weights_bf16.h"
#include "cpu/body/wide_at_once.h"

/* Rows that lie `stride` elements apart. */
struct bf16_rows {
    const elem * at;
    int          stride;
};

/* c[rows][32] (+)= a[rows][n] * b, up to MR rows, b [n / 32] pairs of tiles side by side: 16 columns each. Unrolled by pragma: gcc
 * otherwise keeps the sums in memory, three times slower. */
PLONG_INLINE void bf16_block(
    const int rows, int n, const struct bf16_rows a, const elem * b, float * c, int ldc, const bool add) {
    vf acc[MR][2];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < 2; j++) {
            acc[i][j] = add ? vf_load(c + i * ldc + j * VW) : vf_zero();
        }
    }
    for (int k = 0; k < n; k += 32, b += 2 * TILE) {
        for (int x = 0; x < 32; x += 2) {
            const __m512bh b0 = (__m512bh) _mm512_loadu_si512(b + x * 16);
            const __m512bh b1 = (__m512bh) _mm512_loadu_si512(b + TILE + x * 16);
#pragma GCC unroll 16
            for (int i = 0; i < rows; i++) {
                int32_t pair;
                memcpy(&pair, a.at + i * a.stride + k + x, sizeof(pair));
                const __m512bh y = (__m512bh) _mm512_set1_epi32(pair);
                acc[i][0]        = _mm512_dpbf16_ps(acc[i][0], b0, y);
                acc[i][1]        = _mm512_dpbf16_ps(acc[i][1], b1, y);
            }
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < 2; j++) {
            vf_store(c + i * ldc + j * VW, acc[i][j]);
        }
    }
}

/* Logits s[SUB][CHUNK] = q[SUB][pad32(d)] * k^T of the first rows, for keys j0 .. j0 + n, padded to a multiple of 32.
 * It is not interleaved with the softmax, which takes few of the instructions. */
PLONG_INLINE void bf16_logits(const elem * q, const elem * k, int rows, int n, const int ds, float * s) {
    for (int j = 0; j < n; j += 32) {
        for (int i = 0; i < rows; i += MR) {
            bf16_block(
                MR, ds, (struct bf16_rows) { q + i * ds, ds }, k + (size_t) j * ds, s + i * CHUNK + j, CHUNK, false);
        }
    }
}

static inline struct wide_work wide_begin(const elem * q, const elem * k, int rows, int j0, int n, int d, float * s) {
    const int ds = plong_pad32(d);
    k += (size_t) j0 * ds;
    switch (ds) { /* as a variable it would need more registers than there are */
        case 64: bf16_logits(q, k, rows, n, 64, s); break;
        case 128: bf16_logits(q, k, rows, n, 128, s); break;
        default: bf16_logits(q, k, rows, n, ds, s); break;
    }
    return (struct wide_work) { 0 };
}

/* acc[SUB][dv] += p[SUB][j0 ..] * v of the first rows, for keys j0 .. j0 + n, padded to 32 */
static void wide_values(const elem * p, const elem * v, int rows, int j0, int n, int dv, float * acc) {
    n = (n + 31) & ~31;
    v += (size_t) (j0 / 32) * 2 * TILE;
    for (int i = 0; i < dv; i += 32, v += (BLOCK / 32) * 2 * TILE) {
        for (int r = 0; r < rows; r += MR) {
            bf16_block(MR, n, (struct bf16_rows) { p + r * BLOCK + j0, BLOCK }, v, acc + r * dv + i, dv, true);
        }
    }
}

#endif
