/*
 * unpack.h - a panel of one weight row: 32 codes at a time, unsigned (those of Q8_0 and IQ4_NL may be signed), and the scales
 * (and mins) of their groups. Each type is as ggml-common.h defines it.
 */

/* Signed bytes as codes: plus 128 where these are unsigned. */
PLONG_INLINE b32 whole_bytes(b32 x) { return SIGNED_CODES ? x : b32_flip(x); }

/* Codes 32 * i to 32 * i + 31 of a panel. */
PLONG_INLINE b32 unpack_codes(const enum ggml_type type, const void * row, const int i) {
    switch (type) {
        case GGML_TYPE_Q8_0: return whole_bytes(b32_load(((const block_q8_0 *) row)[i].qs));
        case GGML_TYPE_Q4_0: return b32_nibbles(((const block_q4_0 *) row)[i].qs);
        case GGML_TYPE_Q4_1: return b32_nibbles(((const block_q4_1 *) row)[i].qs);
        case GGML_TYPE_Q5_0: {
            const block_q5_0 * b = (const block_q5_0 *) row + i;
            return b32_or(b32_nibbles(b->qs), b32_bits(b->qh));
        }
        case GGML_TYPE_Q5_1: {
            const block_q5_1 * b = (const block_q5_1 *) row + i;
            return b32_or(b32_nibbles(b->qs), b32_bits(b->qh));
        }
        case GGML_TYPE_IQ4_NL:
            return whole_bytes(b32_look_up(nl_values, b32_nibbles(((const block_iq4_nl *) row)[i].qs)));
        case GGML_TYPE_MXFP4: return b32_look_up(mx_values, b32_nibbles(((const block_mxfp4 *) row)[i].qs));
        case GGML_TYPE_Q4_K: {
            const block_q4_K * b = (const block_q4_K *) row + i / 8;
            return b32_field(b32_load(b->qs + 32 * (i % 8 / 2)), i % 2 ? 4 : 0, 15);
        }
        case GGML_TYPE_Q5_K: {
            const block_q5_K * b   = (const block_q5_K *) row + i / 8;
            const b32          low = b32_field(b32_load(b->qs + 32 * (i % 8 / 2)), i % 2 ? 4 : 0, 15);
            return b32_or(low, b32_field(b32_load(b->qh), i % 8 - 4, 16));
        }
        default: {
            const block_q6_K * b   = (const block_q6_K *) row + i / 8;
            const b32          low = b32_load(b->ql + 64 * (i % 8 / 4) + 32 * (i % 2));
            return b32_or(
                b32_field(low, i % 4 / 2 ? 4 : 0, 15),
                b32_field(b32_load(b->qh + 32 * (i % 8 / 4)), 2 * (i % 4) - 4, 48));
        }
    }
}

#define HALVES(block, field, to) halves(&((const block *) row)->field, sizeof(block), n / 32, to)

/* Scales of n columns, and what is added to a group's codes times its scale. */
PLONG_INLINE void unpack_scales(const enum ggml_type type, const void * row, int n, float * scales, float * mins) {
    switch (type) {
        case GGML_TYPE_Q8_0: HALVES(block_q8_0, d, scales); break;
        case GGML_TYPE_Q4_0: HALVES(block_q4_0, d, scales); break;
        case GGML_TYPE_Q5_0: HALVES(block_q5_0, d, scales); break;
        case GGML_TYPE_IQ4_NL: HALVES(block_iq4_nl, d, scales); break;
        case GGML_TYPE_Q4_1:
            HALVES(block_q4_1, d, scales);
            HALVES(block_q4_1, m, mins);
            break;
        case GGML_TYPE_Q5_1:
            HALVES(block_q5_1, d, scales);
            HALVES(block_q5_1, m, mins);
            break;
        case GGML_TYPE_MXFP4: exponents(&((const block_mxfp4 *) row)->e, sizeof(block_mxfp4), n / 32, scales); break;
        case GGML_TYPE_Q4_K:
            for (int i = 0; i < n / 256; i++) {
                six_bits((const uint8_t *) ((const block_q4_K *) row + i), scales + 8 * i, mins + 8 * i);
            }
            break;
        case GGML_TYPE_Q5_K:
            for (int i = 0; i < n / 256; i++) {
                six_bits((const uint8_t *) ((const block_q5_K *) row + i), scales + 8 * i, mins + 8 * i);
            }
            break;
        default:
            for (int i = 0; i < n / 256; i++) {
                const block_q6_K * b = (const block_q6_K *) row + i;
                signed_16(f16_one(b->d), b->scales, scales + 16 * i);
            }
    }
}
