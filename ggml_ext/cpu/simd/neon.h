/* neon.h - the vector of floats on 64-bit Arm: 4 lanes. Its contract is in vf.h. */
#ifndef PLONG_CPU_SIMD_NEON_H
#define PLONG_CPU_SIMD_NEON_H

#include <arm_neon.h>

#include "cpu/simd/vf.h"

typedef float32x4_t vf;
#define VW 4
#define MR 6
#define NV 4
static inline vf    vf_zero(void) { return vdupq_n_f32(0); }
static inline vf    vf_set1(float x) { return vdupq_n_f32(x); }
static inline vf    vf_load(const float * p) { return vld1q_f32(p); }
static inline void  vf_store(float * p, vf a) { vst1q_f32(p, a); }
static inline vf    vf_add(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf    vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
static inline vf    vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf    vf_div(vf a, vf b) { return vdivq_f32(a, b); }
static inline vf    vf_max(vf a, vf b) { return vmaxq_f32(a, b); }
static inline vf    vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline float vf_sum(vf a) { return vaddvq_f32(a); }
static inline float vf_hmax(vf a) { return vmaxvq_f32(a); }
static inline vf    vf_f16(const uint16_t * p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static inline vf    vf_bf16(const uint16_t * p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
static inline vf    vf_i8(const int8_t * p) {
    int32_t word;
    memcpy(&word, p, sizeof(word));
    const int8x8_t b = vreinterpret_s8_s32(vdup_n_s32(word));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(b))));
}
static inline vf vf_i4(const uint8_t * p, bool high) {
    uint32_t word;
    memcpy(&word, p, sizeof(word));
    const uint8x8_t b = vreinterpret_u8_u32(vdup_n_u32(high ? word >> 4 : word));
    const int8x8_t  x = vsub_s8(vreinterpret_s8_u8(vand_u8(b, vdup_n_u8(15))), vdup_n_s8(8));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(x))));
}
static inline vf vf_i5(const uint8_t * p, bool high, uint32_t bits) {
    static const int32_t lanes[4] = { 0, -1, -2, -3 };
    const uint32x4_t     fifth    = vandq_u32(vshlq_u32(vdupq_n_u32(bits << 4), vld1q_s32(lanes)), vdupq_n_u32(16));
    return vaddq_f32(vf_i4(p, high), vsubq_f32(vcvtq_f32_u32(fifth), vdupq_n_f32(8)));
}
static inline vf vf_nl(const uint8_t * p, bool high) {
    static const int8_t values[16] = { NL_VALUES };
    uint32_t            word;
    memcpy(&word, p, sizeof(word));
    const uint8x8_t b = vand_u8(vreinterpret_u8_u32(vdup_n_u32(high ? word >> 4 : word)), vdup_n_u8(15));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vqtbl1_s8(vld1q_s8(values), b)))));
}
static inline float f16_one(uint16_t x) { return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(x))), 0); }
static inline bool  vf_any_gt(vf a, vf b) { return vmaxvq_u32(vcgtq_f32(a, b)) != 0; }
static inline vf    vf_exp2(vf x) {
    const uint32x4_t zero = vcltq_f32(x, vdupq_n_f32(EXP2_MIN));
    x                     = vmaxq_f32(x, vdupq_n_f32(EXP2_MIN));
    const vf n            = vrndnq_f32(x);
    const vf r            = vsubq_f32(x, n);
    vf       y            = vdupq_n_f32(EXP2_C6);
    y                     = vfmaq_f32(vdupq_n_f32(EXP2_C5), y, r);
    y                     = vfmaq_f32(vdupq_n_f32(EXP2_C4), y, r);
    y                     = vfmaq_f32(vdupq_n_f32(EXP2_C3), y, r);
    y                     = vfmaq_f32(vdupq_n_f32(EXP2_C2), y, r);
    y                     = vfmaq_f32(vdupq_n_f32(EXP2_C1), y, r);
    y                     = vfmaq_f32(vdupq_n_f32(1.0f), y, r);
    const int32x4_t e     = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(vmulq_f32(y, vreinterpretq_f32_s32(e))), zero));
}
static inline void vf_sum4(vf a, vf b, vf c, vf d, float * out) {
    vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}
static inline void vf_transpose(vf * r) {
    const float32x4x2_t ab = vtrnq_f32(r[0], r[1]), cd = vtrnq_f32(r[2], r[3]);
    r[0] = vcombine_f32(vget_low_f32(ab.val[0]), vget_low_f32(cd.val[0]));
    r[1] = vcombine_f32(vget_low_f32(ab.val[1]), vget_low_f32(cd.val[1]));
    r[2] = vcombine_f32(vget_high_f32(ab.val[0]), vget_high_f32(cd.val[0]));
    r[3] = vcombine_f32(vget_high_f32(ab.val[1]), vget_high_f32(cd.val[1]));
}

#endif
