/* bytes_avx2.h - 32 bytes in a vector of AVX2. The contract is in body.h. */
typedef __m256i   b32;
static inline b32 b32_load(const void * p) { return _mm256_loadu_si256((const __m256i *) p); }
static inline b32 b32_or(b32 a, b32 b) { return _mm256_or_si256(a, b); }
static inline b32 b32_flip(b32 a) { return _mm256_xor_si256(a, _mm256_set1_epi8(-128)); }

PLONG_INLINE b32 b32_field(b32 a, const int right, const int mask) {
    const b32 x = right > 0 ? _mm256_srli_epi16(a, right) : right < 0 ? _mm256_slli_epi16(a, -right) : a;
    return _mm256_and_si256(x, _mm256_set1_epi8((char) mask));
}

static inline b32 b32_nibbles(const uint8_t * q) {
    const __m128i x = _mm_loadu_si128((const __m128i *) q);
    return b32_field(_mm256_inserti128_si256(_mm256_castsi128_si256(x), _mm_srli_epi16(x, 4), 1), 0, 15);
}

static inline b32 b32_look_up(const void * values, b32 at) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *) values)), at);
}

/* 16 where one of 32 bits is set. */
static inline b32 b32_bits(const uint8_t * bits) {
    uint32_t x;
    memcpy(&x, bits, sizeof(x));
    const __m256i byte = _mm256_setr_epi8(
        0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x((long long) 0x8040201008040201);
    const __m256i all = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int) x), byte), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(all, bit), _mm256_set1_epi8(16));
}

/* The 8 scales and 8 mins of 6 bits in a block of Q4_K or Q5_K, whose first 16 bytes are d, d_min, and three times 4: a, b, c.
 * The low bits of the first and second 4 of either are in a, b and in the halves of c's bytes, the high ones in a, b. */
static inline __m128i unpack_six_bits(__m128i x) {
    const __m128i to   = _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15); /* a c b c */
    const __m128i up   = _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11); /* 0 a 0 b */
    const __m128i low  = _mm_srlv_epi32(_mm_shuffle_epi8(x, to), _mm_setr_epi32(0, 0, 0, 4));
    const __m128i high = _mm_and_si128(_mm_srli_epi32(_mm_shuffle_epi8(x, up), 2), _mm_set1_epi8(0x30));
    const __m128i mask = _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f);
    return _mm_or_si128(_mm_and_si128(low, mask), high);
}
