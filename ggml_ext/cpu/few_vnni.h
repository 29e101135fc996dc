/*
 * few_vnni.h - logits and P*V of a few query rows against a q8_0 or q4_0 cache, by AVX-512's products of int16 pairs. Of keys,
 * 16 are the lanes and two dims a pair; of values, 16 dims are the lanes and two keys a pair.
 */
#ifndef PLONG_CPU_FEW_VNNI_H
#define PLONG_CPU_FEW_VNNI_H

#include "few_quant.h"

static inline void quant_config(int32_t k_type) { (void) k_type; }

/* What quant_queries() makes of the queries of a kv head. */
struct quant_digits {
    int16_t * q;      /* [PLONG_FEW][d / 32][16][2] dims 4 g + h and 4 g + h + 2 of each block as pair 2 g + h */
    int32_t * start;  /* [PLONG_FEW][d / 32] what the sums of a block begin with */
    float *   weight; /* [PLONG_FEW] what a unit is worth in a logit per unit of K */
};

static size_t quant_size(int d) { return PLONG_FEW * ((size_t) d / 32 * (64 + 4) + 4); }

static struct quant_digits quant_digits(uint8_t * digits, int d) {
    int32_t * start = (int32_t *) (digits + PLONG_FEW * (size_t) d * 2);
    return (struct quant_digits) { (int16_t *) digits, start, (float *) (start + PLONG_FEW * (size_t) d / 32) };
}

/* 32 floats times f as int16 */
PLONG_INLINE __m512i quant_int16(vf a, vf b, vf f) {
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7); /* packing goes by lanes of 128 bits */
    return _mm512_permutexvar_epi64(
        order, _mm512_packs_epi32(_mm512_cvtps_epi32(vf_mul(a, f)), _mm512_cvtps_epi32(vf_mul(b, f))));
}

/* q [rows][dq], rows <= PLONG_FEW */
static void quant_queries(int32_t type, const float * q, int rows, int dq, int d, uint8_t * out) {
    const struct quant_digits x     = quant_digits(out, d);
    const __m512i             pairs = _mm512_set_epi16(
        31, 29, 30, 28, 27, 25, 26, 24, 23, 21, 22, 20, 19, 17, 18, 16, 15, 13, 14, 12, 11, 9, 10, 8, 7, 5, 6, 4, 3, 1,
        2, 0);
    for (int r = 0; r < rows; r++, q += dq) {
        vf top = vf_zero();
        for (int i = 0; i < d; i += 16) {
            top = vf_max(top, vf_abs(vf_load(q + i)));
        }
        const float max = vf_hmax(top);
        const vf    f   = vf_set1(max > 1e-30f ? QUANT_ONE / max : 0.0f);
        x.weight[r]     = max / QUANT_ONE;
        for (int b = 0; b < d / 32; b++) {
            const __m512i y = quant_int16(vf_load(q + 32 * b), vf_load(q + 32 * b + 16), f);
            const __m512i z = _mm512_madd_epi16(y, _mm512_set1_epi16(-8)); /* nibbles are 8 too large */
            x.start[r * (d / 32) + b] = type == GGML_TYPE_Q4_0 ? _mm512_reduce_add_epi32(z) : 0;
            _mm512_storeu_si512(x.q + ((size_t) r * (d / 32) + b) * 32, _mm512_permutexvar_epi16(pairs, y));
        }
    }
}

PLONG_INLINE vf quant_float(__m512i a, __m512i b) { return _mm512_cvtepi32_ps(_mm512_add_epi32(a, b)); }

/* The word at p, of two int16, in all lanes */
PLONG_INLINE __m512i quant_pair(const int16_t * p) {
    int32_t x;
    memcpy(&x, p, sizeof(x));
    return _mm512_set1_epi32(x);
}

/* ---- logits --------------------------------------------------------------------------------------------------- */

/* A block of 16 keys as bytes: x[g] [key][4], the dims 4 g .. of q8_0; of q4_0 nibbles, the low ones dims 4 g .., the high ones
 * 16 + 4 g .. */
PLONG_INLINE void quant_keys_bytes(const int32_t type, const char * const * row, size_t at, __m512i * x) {
    for (int j = 0; j < 4; j++) {
        x[j] = type == GGML_TYPE_Q8_0 ? quant_two(row[j], row[4 + j], at) : quant_four(row + j, 4, at);
    }
    quant_turn_words(x);
    if (type == GGML_TYPE_Q8_0) {
        __m512i y[4];
        for (int j = 0; j < 4; j++) {
            y[j] = quant_two(row[8 + j], row[12 + j], at);
        }
        quant_turn_words(y);
        for (int g = 0; g < 4; g++) {
            x[4 + g] = _mm512_shuffle_i64x2(x[g], y[g], 0xdd);
            x[g]     = _mm512_shuffle_i64x2(x[g], y[g], 0x88);
        }
    }
}

/* sum[2][rows] += the dims of x, pairs of which are lo and hi, times those of q */
PLONG_INLINE void quant_dot(
    const int rows, __m512i (*sum)[4], __m512i lo, __m512i hi, const int16_t * q, size_t stride) {
    for (int r = 0; r < rows; r++) {
        sum[0][r] = _mm512_dpwssd_epi32(sum[0][r], lo, quant_pair(q + r * stride));
        sum[1][r] = _mm512_dpwssd_epi32(sum[1][r], hi, quant_pair(q + r * stride + 2));
    }
}

/* s[rows][16 keys] */
PLONG_INLINE void quant_logits_16(
    const int32_t type, const int rows, const char * const * row, const struct quant_digits * q, int r0, int nb,
    float * s) {
    const __m512i nibble = _mm512_set1_epi16(15);
    vf            total[4], scale[4];
    for (int r = 0; r < rows; r++) {
        total[r] = vf_zero();
    }
    for (int b = 0; b < nb; b++) {
        const int16_t * qb = q->q + ((size_t) r0 * nb + b) * 32;
        __m512i         x[8], sum[2][4];
        if (b % 4 == 0) {
            quant_scales(type, row, b, nb - b < 4 ? nb - b : 4, scale);
        }
        for (int r = 0; r < rows; r++) {
            sum[0][r] = type == GGML_TYPE_Q8_0 ? _mm512_setzero_si512() : _mm512_set1_epi32(q->start[(r0 + r) * nb + b]);
            sum[1][r] = _mm512_setzero_si512();
        }
        quant_keys_bytes(type, row, quant_at(type, b), x);
#pragma GCC unroll 8
        for (int g = 0; g < (type == GGML_TYPE_Q8_0 ? 8 : 4); g++) {
            if (type == GGML_TYPE_Q8_0) {
                const __m512i lo = _mm512_srai_epi16(_mm512_slli_epi16(x[g], 8), 8);
                quant_dot(rows, sum, lo, _mm512_srai_epi16(x[g], 8), qb + 4 * g, (size_t) nb * 32);
            } else {
                const __m512i y = _mm512_srli_epi16(x[g], 8), z = _mm512_srli_epi16(x[g], 4);
                quant_dot(
                    rows, sum, _mm512_and_si512(x[g], nibble), _mm512_and_si512(y, nibble), qb + 4 * g,
                    (size_t) nb * 32);
                quant_dot(
                    rows, sum, _mm512_and_si512(z, nibble), _mm512_srli_epi16(x[g], 12), qb + 16 + 4 * g,
                    (size_t) nb * 32);
            }
        }
        for (int r = 0; r < rows; r++) {
            total[r] = vf_fma(quant_float(sum[0][r], sum[1][r]), scale[b % 4], total[r]);
        }
    }
    for (int r = 0; r < rows; r++) {
        vf_store(s + r * FEW_BLOCK, vf_mul(total[r], vf_set1(q->weight[r0 + r])));
    }
}

PLONG_INLINE void quant_logits_of(
    const int32_t type, const int rows, const int nb, const struct quant_rows * x, const struct quant_digits * q,
    int r0, float * s, struct few_ahead * ahead) {
    for (int j = 0; j < x->n; j += 16) {
        for (int i = j + 16; i < j + 32 && i < x->n; i++) {
            few_near(x->row[i], nb * few_quant_bytes(type));
        }
        few_prefetch(ahead, 16);
        quant_logits_16(type, rows, x->row + j, q, r0, nb, s + j);
    }
}

#define QUANT_FOR_ROWS(call, type, rows, ...)       \
    switch (rows) {                                 \
        case 4: call(type, 4, __VA_ARGS__); break;  \
        case 2: call(type, 2, __VA_ARGS__); break;  \
        default: call(type, 1, __VA_ARGS__); break; \
    }

#define QUANT_FOR_TYPE(call, type, rows, ...)                     \
    if (type == GGML_TYPE_Q8_0) {                                 \
        QUANT_FOR_ROWS(call, GGML_TYPE_Q8_0, rows, __VA_ARGS__)   \
    } else {                                                      \
        QUANT_FOR_ROWS(call, GGML_TYPE_Q4_0, rows, __VA_ARGS__)   \
    }

static inline int quant_step(int rows) { return rows >= 4 ? 4 : rows >= 2 ? 2 : 1; }

/* s[rows][FEW_BLOCK] for the keys, padded to 16. */
static void quant_logits(
    const struct quant_rows * x, uint8_t * digits, int rows, int d, float * s, struct few_ahead * ahead) {
    const struct quant_digits q = quant_digits(digits, d);
    for (int r = 0, step; r < rows; r += step) {
        step = quant_step(rows - r);
        QUANT_FOR_TYPE(quant_logits_of, x->type, step, d / 32, x, &q, r, s + r * FEW_BLOCK, ahead)
    }
}

/* ---- P*V ------------------------------------------------------------------------------------------------------ */

/* acc[rows][dv] += 32 dims of 64 values, at `at` of each row. w [rows][FEW_BLOCK]: weights; unit: what one of each is worth.
 * ask: keys ahead, asked for meanwhile */
PLONG_INLINE void quant_values_block(
    const int32_t type, const int rows, const char * const * row, size_t at, const int16_t (*w)[FEW_BLOCK],
    const float * unit, float * acc, int dv, struct few_ahead * ahead, int ask) {
    __m512i sum[2][4];
    for (int r = 0; r < rows; r++) {
        sum[0][r] = sum[1][r] = _mm512_setzero_si512();
    }
    for (int j = 0; j < FEW_BLOCK; j += 2) {
        __m512i lo, hi;
        if (j % 16 == 0) {
            quant_ask(ahead, ask, j / 16, FEW_BLOCK / 16);
        }
        if (type == GGML_TYPE_Q8_0) {
            const __m512i a = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *) (row[j] + at)));
            const __m512i b = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *) (row[j + 1] + at)));
            lo              = _mm512_unpacklo_epi16(a, b);
            hi              = _mm512_unpackhi_epi16(a, b);
        } else { /* lo: low nibbles with the high ones above them */
            const __m512i each = _mm512_setr_epi32(
                0x00100000, 0x00110001, 0x00120002, 0x00130003, 0x00140004, 0x00150005, 0x00160006, 0x00170007,
                0x00180008, 0x00190009, 0x001a000a, 0x001b000b, 0x001c000c, 0x001d000d, 0x001e000e, 0x001f000f);
            const __m128i a  = _mm_loadu_si128((const __m128i *) (row[j] + at));
            const __m128i b  = _mm_loadu_si128((const __m128i *) (row[j + 1] + at));
            const __m256i ab = _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
            lo               = _mm512_maskz_permutexvar_epi8(0x5555555555555555, each, _mm512_castsi256_si512(ab));
            hi               = _mm512_srli_epi16(lo, 4);
        }
        for (int r = 0; r < rows; r++) {
            const __m512i x = quant_pair(&w[r][j]);
            sum[0][r]       = _mm512_dpwssd_epi32(sum[0][r], lo, x);
            sum[1][r]       = _mm512_dpwssd_epi32(sum[1][r], hi, x);
        }
    }
    const __m512i even = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i odd  = _mm512_add_epi32(even, _mm512_set1_epi32(8));
    for (int r = 0; r < rows; r++, acc += dv) {
        __m512i a = sum[0][r], b = sum[1][r];
        if (type == GGML_TYPE_Q8_0) {
            a = _mm512_permutex2var_epi32(sum[0][r], even, b);
            b = _mm512_permutex2var_epi32(sum[0][r], odd, b);
        } else { /* nibbles are 8 too large */
            const __m512i minus = _mm512_set1_epi16(-8);
            const __m512i y     = _mm512_dpwssd_epi32(
                _mm512_madd_epi16(_mm512_loadu_si512(w[r]), minus), _mm512_loadu_si512(w[r] + 32), minus);
            const __m512i start = _mm512_set1_epi32(_mm512_reduce_add_epi32(y));
            a                   = _mm512_add_epi32(_mm512_sub_epi32(a, _mm512_slli_epi32(b, 4)), start);
            b                   = _mm512_add_epi32(b, start);
        }
        const vf f = vf_set1(unit[r]);
        vf_store(acc, vf_fma(_mm512_cvtepi32_ps(a), f, vf_load(acc)));
        vf_store(acc + 16, vf_fma(_mm512_cvtepi32_ps(b), f, vf_load(acc + 16)));
    }
}

PLONG_INLINE void quant_values_of(
    const int32_t type, const int rows, const int nb, const struct quant_rows * v, const float * p, const float * most,
    float * acc, int dv, struct few_ahead * ahead) {
    vf scale[4][4]; /* [block][16 keys each] */
    for (int b = 0; b < nb; b++) {
        int16_t w[4][FEW_BLOCK];
        float   unit[4];
        for (int i = 0; i < 4 && b % 4 == 0; i++) {
            vf x[4];
            quant_scales(type, v->row + 16 * i, b, nb - b < 4 ? nb - b : 4, x);
            for (int j = 0; j < 4; j++) {
                scale[j][i] = x[j];
            }
        }
        const vf *  s       = scale[b % 4];
        const float largest = quant_max(vf_abs(s[0]), vf_abs(s[1]), vf_abs(s[2]), vf_abs(s[3]));
        const vf    f       = vf_set1(largest > 1e-30f ? QUANT_ONE / largest : 0.0f);
        for (int r = 0; r < rows; r++) {
            unit[r] = most[r] * largest / QUANT_ONE;
            for (int i = 0; i < 4; i += 2) {
                const float * x = p + r * FEW_BLOCK + 16 * i;
                const __m512i y = quant_int16(vf_mul(vf_load(x), s[i]), vf_mul(vf_load(x + 16), s[i + 1]), f);
                _mm512_storeu_si512(w[r] + 16 * i, y);
            }
        }
        quant_values_block(
            type, rows, v->row, quant_at(type, b), (const int16_t(*)[FEW_BLOCK]) w, unit, acc + 32 * b, dv, ahead,
            FEW_BLOCK * (b + 1) / nb - FEW_BLOCK * b / nb);
    }
}

/* acc[rows][dv] += p[rows][FEW_BLOCK] * v; p is 0 for keys that are not there, and is changed. */
static void quant_values(
    const struct quant_rows * v, float * p, int rows, int d, float * acc, int dv, struct few_ahead * ahead) {
    float most[PLONG_FEW];
    for (int r = 0; r < rows; r++) {
        most[r] = quant_normalize(p + r * FEW_BLOCK);
    }
    for (int r = 0, step; r < rows; r += step) {
        step = quant_step(rows - r);
        QUANT_FOR_TYPE(
            quant_values_of, v->type, step, d / 32, v, p + r * FEW_BLOCK, most + r, acc + (size_t) r * dv, dv, ahead)
    }
}

#endif
