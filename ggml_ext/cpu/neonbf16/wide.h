/* wide.h - many query rows against a packed key block, by Arm's matrix products of bf16: an instruction multiplies
 * two rows by two columns over four dims (or keys), and adds to four float32 sums. Operands are stored as it reads
 * them, in groups of 8 rows or columns: K as [keys / 8][d_k / 4][4 pairs of keys][2][4 dims],
 * V as [d_v / 8][BLOCK / 4][4 pairs of dims][2][4 keys]. */
#ifndef PLONG_CPU_NEONBF16_WIDE_H
#define PLONG_CPU_NEONBF16_WIDE_H

#include "cpu/body/rows.h"
#include "cpu/body/softmax.h"

#define BLOCK 256           /* keys that are packed at a time: the row length of probabilities */
#define CHUNK 64            /* keys between one softmax and the next: the row length of logits */
#define SUB   32            /* rows whose logits and probabilities stay in the L1 cache: a multiple of 8 */
#define PAD   32            /* logits of a chunk are padded to a multiple of this */
#define DEPTH PLONG_MAX_D_K /* most dims, or keys, of a product */

typedef uint16_t elem; /* bf16 */

#include "cpu/body/fixed_none.h"
#include "cpu/body/wide_at_once.h"

/* 8 floats, rounded */
static inline bfloat16x8_t bf16_of(vf lo, vf hi) { return vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(lo), hi); }

static inline void bf16_store(elem * p, bfloat16x8_t x) { vst1q_u16(p, vreinterpretq_u16_bf16(x)); }

static inline bfloat16x8_t bf16_load(const elem * p) { return vreinterpretq_bf16_u16(vld1q_u16(p)); }

/* out[0] = 4 dims of a and of b, out[32] = the next 4 */
static inline void bf16_pair(elem * out, uint16x8_t a, uint16x8_t b) {
    const uint64x2_t x = vreinterpretq_u64_u16(a), y = vreinterpretq_u64_u16(b);
    vst1q_u16(out, vreinterpretq_u16_u64(vzip1q_u64(x, y)));
    vst1q_u16(out + 32, vreinterpretq_u16_u64(vzip2q_u64(x, y)));
}

static inline void wide_pack_query(elem * dst, const float * q, int dk) {
    for (int i = 0; i < dk; i += 8) {
        bf16_store(dst + i, bf16_of(vf_load(q + i), vf_load(q + i + 4)));
    }
}

/* count rows j of n in float32; those from n on are zeros */
static inline void stage_rows(int32_t type, const void * const * row, int j, int n, int count, int d, float * stage) {
    const int ds = plong_pad32(d);
    for (int x = 0; x < count; x++) {
        if (j + x < n) {
            row_to_f32(type, row[j + x], stage + x * ds, d);
        } else {
            memset(stage + x * ds, 0, (size_t) ds * sizeof(float));
        }
    }
}

/* row[n] of d values; stage [8][pad32(d)]. Keys up to the next multiple of 32 are zeros. Returns whether fixed point
 * can be used for them: never. */
static bool wide_pack_keys(elem * dst, int32_t type, const void * const * row, int n, int d, float * stage) {
    const int ds = plong_pad32(d), bytes = (int) ggml_row_size((enum ggml_type) type, d);
    prefetch_rows(row, 0, PREFETCH_AHEAD, n, bytes);
    for (int j = 0; j < ((n + 31) & ~31); j += 8) {
        prefetch_rows(row, j + PREFETCH_AHEAD, 8, n, bytes);
        stage_rows(type, row, j, n, 8, d, stage);
        for (int i = 0; i < ds; i += 8) {
            uint16x8_t r[8];
            for (int x = 0; x < 8; x++) {
                const float * from = stage + x * ds + i;
                r[x]               = vreinterpretq_u16_bf16(bf16_of(vf_load(from), vf_load(from + 4)));
            }
            for (int x = 0; x < 8; x += 2) {
                bf16_pair(dst + (size_t) j * ds + i * 8 + x * 4, r[x], r[x + 1]);
            }
        }
    }
    return false;
}

/* stage [4][pad32(d)]; rows up to the next multiple of 32 are zeros */
static void wide_pack_values(elem * dst, int32_t type, const void * const * row, int n, int d, float * stage) {
    const int ds = plong_pad32(d), bytes = (int) ggml_row_size((enum ggml_type) type, d);
    prefetch_rows(row, 0, PREFETCH_AHEAD, n, bytes);
    for (int j = 0; j < ((n + 31) & ~31); j += 4) {
        prefetch_rows(row, j + PREFETCH_AHEAD, 4, n, bytes);
        stage_rows(type, row, j, n, 4, d, stage);
        for (int i = 0; i < ds; i += 8) {
            elem *     out = dst + (size_t) i * BLOCK + j * 8;
            uint16x8_t r[4];
            for (int x = 0; x < 4; x++) {
                const float * from = stage + x * ds + i;
                r[x]               = vreinterpretq_u16_bf16(bf16_of(vf_load(from), vf_load(from + 4)));
            }
            const uint16x8_t even[2] = { vzip1q_u16(r[0], r[2]), vzip2q_u16(r[0], r[2]) };
            const uint16x8_t odd[2]  = { vzip1q_u16(r[1], r[3]), vzip2q_u16(r[1], r[3]) };
            for (int x = 0; x < 2; x++) { /* 4 keys of each dim side by side */
                vst1q_u16(out + x * 16, vzip1q_u16(even[x], odd[x]));
                vst1q_u16(out + x * 16 + 8, vzip2q_u16(even[x], odd[x]));
            }
        }
    }
}

/* The first operand: out[rows / 8][n / 4][4 pairs of rows][2][4] of a[rows][n]. Rows up to the next multiple of 8 are
 * read. */
static inline void bf16_transpose(const elem * a, int lda, int rows, int n, elem * out) {
    for (int r = 0; r < rows; r += 8) {
        for (int k = 0; k < n; k += 8) {
            for (int x = 0; x < 8; x += 2) {
                const elem * from = a + (r + x) * lda + k;
                bf16_pair(out + r * n + k * 8 + x * 4, vld1q_u16(from), vld1q_u16(from + lda));
            }
        }
    }
}

/* c[8][8] (+)= a * b over n dims or keys */
PLONG_INLINE void bf16_block(int n, const elem * a, const elem * b, float * c, int ldc, const bool add) {
    vf acc[4][4];
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 4; j++) {
            const float * at = c + 2 * i * ldc + 2 * j;
            acc[i][j]        = add ? vcombine_f32(vld1_f32(at), vld1_f32(at + ldc)) : vf_zero();
        }
    }
    for (int k = 0; k < n; k += 4, a += 32, b += 32) {
        bfloat16x8_t y[4];
        for (int j = 0; j < 4; j++) {
            y[j] = bf16_load(b + j * 8);
        }
        for (int i = 0; i < 4; i++) {
            const bfloat16x8_t x = bf16_load(a + i * 8);
            for (int j = 0; j < 4; j++) {
                acc[i][j] = vbfmmlaq_f32(acc[i][j], x, y[j]);
            }
        }
    }
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 4; j++) {
            float * at = c + 2 * i * ldc + 2 * j;
            vst1_f32(at, vget_low_f32(acc[i][j]));
            vst1_f32(at + ldc, vget_high_f32(acc[i][j]));
        }
    }
}

/* Logits s[SUB][CHUNK] = q[SUB][pad32(d)] * k^T of the first rows, for keys j0 .. j0 + n, padded to a multiple of 32.
 * They are not interleaved with the softmax, which needs the same units. */
static inline struct wide_work wide_begin(const elem * q, const elem * k, int rows, int j0, int n, int d, float * s) {
    const int ds = plong_pad32(d);
    elem      a[SUB * DEPTH];
    bf16_transpose(q, ds, rows, ds, a);
    k += (size_t) j0 * ds;
    for (int j = 0; j < ((n + 31) & ~31); j += 8) {
        for (int i = 0; i < rows; i += 8) {
            bf16_block(ds, a + i * ds, k + (size_t) j * ds, s + i * CHUNK + j, CHUNK, false);
        }
    }
    return (struct wide_work) { 0 };
}

/* acc[SUB][dv] += p[SUB][j0 ..] * v of the first rows, for keys j0 .. j0 + n, padded to 32 */
static void wide_values(const elem * p, const elem * v, int rows, int j0, int n, int dv, float * acc) {
    elem a[SUB * BLOCK];
    n = (n + 31) & ~31;
    bf16_transpose(p + j0, BLOCK, rows, n, a);
    v += j0 * 8;
    for (int i = 0; i < dv; i += 8) {
        for (int r = 0; r < rows; r += 8) {
            bf16_block(n, a + r * n, v + (size_t) i * BLOCK, acc + r * dv + i, dv, true);
        }
    }
}

/* ---- probabilities -------------------------------------------------------------------------------------------- */

static inline elem * wide_probabilities(float * s, elem * p) {
    (void) s;
    return p;
}

static inline vf bf16_low(bfloat16x8_t x) { return vcvtq_low_f32_bf16(x); }
static inline vf bf16_high(bfloat16x8_t x) { return vcvtq_high_f32_bf16(x); }

/* p[n] *= f */
static void wide_rescale(elem * p, int n, float f) {
    for (int i = 0; i < n; i += 8) {
        const bfloat16x8_t x = bf16_load(p + i);
        bf16_store(p + i, bf16_of(vf_mul(bf16_low(x), vf_set1(f)), vf_mul(bf16_high(x), vf_set1(f))));
    }
}

/* 2^x for x <= LAZY, as exact as bf16 can represent */
static inline vf exp2_bf16(vf x) {
    const uint32x4_t zero = vcltq_f32(x, vf_set1(EXP2_MIN));
    x                     = vmaxq_f32(x, vf_set1(EXP2_MIN));
    const vf n = vrndmq_f32(x), r = vf_sub(x, n);
    vf       y        = vf_set1(EXP2_B3);
    y                 = vf_fma(y, r, vf_set1(EXP2_B2));
    y                 = vf_fma(y, r, vf_set1(EXP2_B1));
    y                 = vf_fma(y, r, vf_set1(EXP2_B0));
    const int32x4_t e = vaddq_s32(vreinterpretq_s32_f32(y), vshlq_n_s32(vcvtq_s32_f32(n), 23));
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_s32(e), zero));
}

/* p[n] = 2^(s - m). The rounded weights are added to l[VW], so that the weights of a row still add up to one */
static inline void wide_exp(const float * s, elem * p, int n, float m, float * l) {
    const vf shift = vf_set1(m);
    vf       sum   = vf_load(l);
    for (int i = 0; i < n; i += 8) {
        const vf a = exp2_bf16(vf_sub(vf_load(s + i), shift)), b = exp2_bf16(vf_sub(vf_load(s + i + 4), shift));
        const bfloat16x8_t e = bf16_of(a, b);
        bf16_store(p + i, e);
        sum = vf_add(sum, vf_add(bf16_low(e), bf16_high(e)));
    }
    vf_store(l, sum);
}

#endif
