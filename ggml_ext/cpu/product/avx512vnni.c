/* avx512vnni.c - the products for x86-64 with AVX-512's dot products of bytes: Intel from Cascade Lake, AMD from Zen 4. */
#define PLONG_ISA_STRING "avx512vnni"
#define PLONG_NAME(x)    x##_avx512vnni

#include "cpu/product/body/base.h"
#include "cpu/kernel.h"

extern const struct plong_kernel plong_kernel_avx512;

static bool isa_usable(void) { return plong_kernel_avx512.usable() && __builtin_cpu_supports("avx512vnni"); }

#include "cpu/simd/avx512.h"

#define ROWS         6
#define FLOAT_ROWS   12
#define SIGNED_CODES 0
typedef __m512i  vi;
typedef __m512i  vc;
static inline vi vi_zero(void) { return _mm512_setzero_si512(); }
static inline vi vi_set1(int32_t x) { return _mm512_set1_epi32(x); }
static inline vi vi_load(const int32_t * p) { return _mm512_loadu_si512(p); }
static inline vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
static inline vf vi_float(vi x) { return _mm512_cvtepi32_ps(x); }
static inline vc vc_load(const void * p) { return _mm512_loadu_si512(p); }
static inline vi vi_dot(vi acc, vc w, vc x) { return _mm512_dpbusd_epi32(acc, w, x); }
static inline vi vi_dot_wide(vi acc, vc w, vc x) { return _mm512_dpbusd_epi32(acc, w, x); }

/* Sums of 4 lanes each: lane 4 l + v has those of quarter l of a[v]. */
static inline vi sum_quarters(const vi * a) {
    const vi x = vi_add(_mm512_unpacklo_epi32(a[0], a[1]), _mm512_unpackhi_epi32(a[0], a[1]));
    const vi y = vi_add(_mm512_unpacklo_epi32(a[2], a[3]), _mm512_unpackhi_epi32(a[2], a[3]));
    return vi_add(_mm512_unpacklo_epi64(x, y), _mm512_unpackhi_epi64(x, y));
}
static inline vi vi_sums_16(const vi * a) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, sum_quarters(a));
}
static inline vi vi_sums_32(const vi * a) {
    const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    const vi      x = sum_quarters(a), y = sum_quarters(a + 4);
    return _mm512_permutexvar_epi32(order, vi_add(_mm512_shuffle_i32x4(x, y, 0x88), _mm512_shuffle_i32x4(x, y, 0xdd)));
}

#include "cpu/product/simd/bytes_avx2.h"

static inline vc   vc_codes(const b32 * b) { return _mm512_inserti64x4(_mm512_castsi256_si512(b[0]), b[1], 1); }
static inline void signed_16(float d, const int8_t * bytes, float * to) {
    const __m512i x = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) bytes));
    _mm512_storeu_ps(to, _mm512_mul_ps(_mm512_set1_ps(d), _mm512_cvtepi32_ps(x)));
}

static inline void six_bits(const uint8_t * block, float * scales, float * mins) {
    const __m128i x   = _mm_loadu_si128((const __m128i *) block); /* d and d_min come first */
    const __m512i six = _mm512_cvtepu8_epi32(unpack_six_bits(x));
    const __m512i by  = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m512  d   = _mm512_permutexvar_ps(by, _mm512_castps128_ps512(_mm_cvtph_ps(x)));
    const __m512  y   = _mm512_mul_ps(d, _mm512_cvtepi32_ps(six));
    _mm256_storeu_ps(scales, _mm512_castps512_ps256(y));
    _mm256_storeu_ps(mins, _mm256_xor_ps(_mm512_extractf32x8_ps(y, 1), _mm256_set1_ps(-0.0f)));
}

static inline void halves(const void * first, size_t stride, int n, float * to) {
    if (n == 16 && stride == 18) { /* words 0, 9, 18, ... */
        const char *          p          = first;
        static const uint16_t places[32] = { 0, 9, 18, 27, 36, 45, 54, 63, 8, 17, 26, 35, 44, 53, 62, 0,
                                             0, 0, 0,  0,  0,  0,  0,  0,  0, 0,  0,  0,  0,  0,  0,  0 };
        const __m512i         at         = _mm512_loadu_si512(places);
        const __m512i         a = _mm512_permutex2var_epi16(_mm512_loadu_si512(p), at, _mm512_loadu_si512(p + 64));
        const __m512i b   = _mm512_permutex2var_epi16(_mm512_loadu_si512(p + 128), at, _mm512_loadu_si512(p + 192));
        const __m128i low = _mm512_castsi512_si128(a);
        const __m128i high =
            _mm_insert_epi16(_mm512_extracti32x4_epi32(b, 1), *(const uint16_t *) (p + (size_t) 15 * 18), 7);
        _mm512_storeu_ps(to, _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1)));
        return;
    }
#define HALF(i) (short) *(const uint16_t *) ((const char *) first + (i) * stride)
    if (n == 16) {
        const __m256i x = _mm256_setr_epi16(
            HALF(0), HALF(1), HALF(2), HALF(3), HALF(4), HALF(5), HALF(6), HALF(7), HALF(8), HALF(9), HALF(10),
            HALF(11), HALF(12), HALF(13), HALF(14), HALF(15));
        _mm512_storeu_ps(to, _mm512_cvtph_ps(x));
        return;
    }
    for (int i = 0; i < n; i++) {
        to[i] = f16_one((uint16_t) HALF(i));
    }
#undef HALF
}

/* Half of 2^(e - 127), for n exponents e. */
static inline void exponents(const uint8_t * first, size_t stride, int n, float * to) {
    uint8_t e[16] = { 0 };
    for (int i = 0; i < n; i++) {
        e[i] = first[(size_t) i * stride];
    }
    const __m512i x = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *) e)), one = _mm512_set1_epi32(1);
    const __m512i high = _mm512_slli_epi32(_mm512_sub_epi32(x, one), 23);
    const __m512i low =
        _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), x); /* below the smallest exponent of a float */
    _mm512_storeu_si512(to, _mm512_mask_blend_epi32(_mm512_cmpgt_epi32_mask(x, one), low, high));
}

/* ---- scales of 16 rows at once -------------------------------------------------------------------------------- */

/* Dwords 0 to 3 of 16 rows, at `at`: out[j] has those of dword j, a row in each lane. */
static inline void turn_dwords(const char * const * rows, size_t at, __m512i * out) {
    __m512i x[4], y[4];
    for (int k = 0; k < 4; k++) { /* lane l of x[k] is row 4 l + k */
        const __m128i * p[4];
        for (int l = 0; l < 4; l++) {
            p[l] = (const __m128i *) (rows[4 * l + k] + at);
        }
        x[k] = _mm512_castsi128_si512(_mm_loadu_si128(p[0]));
        x[k] = _mm512_inserti32x4(x[k], _mm_loadu_si128(p[1]), 1);
        x[k] = _mm512_inserti32x4(x[k], _mm_loadu_si128(p[2]), 2);
        x[k] = _mm512_inserti32x4(x[k], _mm_loadu_si128(p[3]), 3);
    }
    for (int k = 0; k < 2; k++) {
        y[2 * k]     = _mm512_unpacklo_epi32(x[2 * k], x[2 * k + 1]);
        y[2 * k + 1] = _mm512_unpackhi_epi32(x[2 * k], x[2 * k + 1]);
    }
    /* y[0] and y[2] have dwords 0 and 1 of rows 4 l and 4 l + 1, and 4 l + 2 and 4 l + 3 */
    out[0] = _mm512_unpacklo_epi64(y[0], y[2]);
    out[1] = _mm512_unpackhi_epi64(y[0], y[2]);
    out[2] = _mm512_unpacklo_epi64(y[1], y[3]);
    out[3] = _mm512_unpackhi_epi64(y[1], y[3]);
}

PLONG_INLINE void put_scaled(__m512 d, __m512i x, float * to) {
    _mm512_storeu_ps(to, _mm512_mul_ps(d, _mm512_cvtepi32_ps(x)));
}

/* A block of Q4_K or Q5_K; what its dwords are is said at unpack_six_bits(). */
static inline void turn_six_bits(const char * const * rows, size_t at, float * scales, float * mins, int stride) {
    const __m512i low4 = _mm512_set1_epi32(15), low6 = _mm512_set1_epi32(63), high = _mm512_set1_epi32(0x30);
    __m512i       x[4];
    turn_dwords(rows, at, x);
    const __m512 d = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x[0]));
    const __m512 d_min =
        _mm512_xor_ps(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(x[0], 16))), _mm512_set1_ps(-0.0f));
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const unsigned n  = 8 * (unsigned) j;
        const __m512i  up = _mm512_and_si512(_mm512_srli_epi32(x[1], n + 2), high);
        const __m512i  vp = _mm512_and_si512(_mm512_srli_epi32(x[2], n + 2), high);
        put_scaled(d, _mm512_and_si512(_mm512_srli_epi32(x[1], n), low6), scales + j * stride);
        put_scaled(d_min, _mm512_and_si512(_mm512_srli_epi32(x[2], n), low6), mins + j * stride);
        put_scaled(
            d, _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi32(x[3], n), low4), up), scales + (4 + j) * stride);
        put_scaled(
            d_min, _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi32(x[3], n + 4), low4), vp),
            mins + (4 + j) * stride);
    }
}

/* A block of Q6_K: 16 signed bytes, and one half. */
static inline void turn_signed(const char * const * rows, size_t at, float * scales, int stride) {
    const size_t d_at = at + offsetof(block_q6_K, d);
    __m512i      x[4];
    turn_dwords(rows, at + offsetof(block_q6_K, scales), x);
#define D(i) (short) *(const uint16_t *) (rows[i] + d_at)
    const __m512 d = _mm512_cvtph_ps(_mm256_setr_epi16(
        D(0), D(1), D(2), D(3), D(4), D(5), D(6), D(7), D(8), D(9), D(10), D(11), D(12), D(13), D(14), D(15)));
#undef D
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        for (unsigned j = 0; j < 4; j++) {
            const __m512i y = _mm512_srai_epi32(_mm512_slli_epi32(x[k], 24 - 8 * j), 24);
            put_scaled(d, y, scales + (4 * k + (int) j) * stride);
        }
    }
}

#define WHOLE_SCALES
PLONG_INLINE bool has_whole_scales(enum ggml_type type) {
    return type == GGML_TYPE_Q4_K || type == GGML_TYPE_Q5_K || type == GGML_TYPE_Q6_K;
}

PLONG_INLINE void whole_scales(
    const enum ggml_type type, int n, const char * const * rows, float * scales, float * mins, int stride) {
    for (int i = 0; i < n / 256; i++) {
        if (type == GGML_TYPE_Q6_K) {
            turn_signed(rows, (size_t) i * sizeof(block_q6_K), scales + 16 * i * stride, stride);
        } else {
            const size_t size = type == GGML_TYPE_Q4_K ? sizeof(block_q4_K) : sizeof(block_q5_K);
            turn_six_bits(rows, (size_t) i * size, scales + 8 * i * stride, mins + 8 * i * stride, stride);
        }
    }
}

/* ---- codes, 64 at a time -------------------------------------------------------------------------------------- */

#define WHOLE_CODES
PLONG_INLINE bool has_whole_codes(enum ggml_type type) { return type != GGML_TYPE_Q8_0; }

static inline __m512i twice(const void * p) { return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *) p)); }

/* x >> n in the first half, x >> n + m in the second; n < 0: x << -n */
PLONG_INLINE __m512i shifted(__m512i x, const int n, const int m) {
    const __m256i a  = _mm256_set1_epi16((short) (n < 0 ? -n : n)),
                  b  = _mm256_set1_epi16((short) (n < 0 ? -n - m : n + m));
    const __m512i by = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
    return n < 0 ? _mm512_sllv_epi16(x, by) : _mm512_srlv_epi16(x, by);
}

/* (a & mask_a) | (b & mask_b), whose masks are disjoint */
PLONG_INLINE __m512i joined(__m512i a, const int mask_a, __m512i b, const int mask_b) {
    const __m512i x = _mm512_and_si512(a, _mm512_set1_epi8((char) mask_a));
    return _mm512_ternarylogic_epi64(x, b, _mm512_set1_epi8((char) mask_b), 0xf8);
}

/* The nibbles of two times 16 bytes, the low ones of each first. */
PLONG_INLINE __m512i nibbles_twice(const void * a, const void * b) {
    const __m512i x = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *) a));
    const __m512i y = _mm512_mask_broadcast_i32x4(x, 0xff00, _mm_loadu_si128((const __m128i *) b));
    const __m512i by =
        _mm512_setr_epi64(0, 0, 0x0004000400040004, 0x0004000400040004, 0, 0, 0x0004000400040004, 0x0004000400040004);
    return _mm512_and_si512(_mm512_srlv_epi16(y, by), _mm512_set1_epi8(15));
}

/* Adds 16 where a bit is set. */
PLONG_INLINE __m512i with_fifths(__m512i x, const uint8_t * a, const uint8_t * b) {
    uint32_t low, high;
    memcpy(&low, a, sizeof(low));
    memcpy(&high, b, sizeof(high));
    return _mm512_mask_add_epi8(x, (uint64_t) high << 32 | low, x, _mm512_set1_epi8(16));
}

PLONG_INLINE __m512i looked_up(const void * values, __m512i at) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *) values)), at);
}

#define PAIR(block, field) nibbles_twice(((const block *) row)[2 * i].field, ((const block *) row)[2 * i + 1].field)
PLONG_INLINE vc block_codes(const enum ggml_type type, const void * row, const int i) {
    const block_q5_0 * b = (const block_q5_0 *) row + 2 * i;
    const block_q5_1 * c = (const block_q5_1 *) row + 2 * i;
    switch (type) {
        case GGML_TYPE_Q4_0: return PAIR(block_q4_0, qs);
        case GGML_TYPE_Q4_1: return PAIR(block_q4_1, qs);
        case GGML_TYPE_Q5_0: return with_fifths(PAIR(block_q5_0, qs), b[0].qh, b[1].qh);
        case GGML_TYPE_Q5_1: return with_fifths(PAIR(block_q5_1, qs), c[0].qh, c[1].qh);
        case GGML_TYPE_IQ4_NL: return looked_up(nl_codes, PAIR(block_iq4_nl, qs));
        default: return looked_up(mx_values, PAIR(block_mxfp4, qs));
    }
}

PLONG_INLINE vc whole_codes(const enum ggml_type type, const void * row, const int i) {
    const __m512i nibble = _mm512_set1_epi8(15);
    if (type == GGML_TYPE_Q4_K) {
        const block_q4_K * b = (const block_q4_K *) row + i / 4;
        return _mm512_and_si512(shifted(twice(b->qs + 32 * (i % 4)), 0, 4), nibble);
    }
    if (type == GGML_TYPE_Q5_K) {
        const block_q5_K * b = (const block_q5_K *) row + i / 4;
        const int          n = 2 * (i % 4) - 4; /* of the fifth bits, so that they are worth 16 */
        return joined(shifted(twice(b->qs + 32 * (i % 4)), 0, 4), 15, shifted(twice(b->qh), n, 1), 16);
    }
    if (type != GGML_TYPE_Q6_K) {
        return block_codes(type, row, i);
    }
    const block_q6_K * b   = (const block_q6_K *) row + i / 4;
    const __m512i      low = _mm512_loadu_si512(b->ql + 64 * (i % 4 / 2));
    return joined(
        i % 2 ? _mm512_srli_epi16(low, 4) : low, 15, shifted(twice(b->qh + 32 * (i % 4 / 2)), i % 2 ? 0 : -4, 2), 48);
}

#include "cpu/product/body/body.h"
