/* scalar.h - the vector of floats on portable C: 1 lane. Its contract is in vf.h. */
#ifndef PLONG_CPU_SIMD_SCALAR_H
#define PLONG_CPU_SIMD_SCALAR_H

#include "cpu/simd/vf.h"

typedef float vf;
#define VW 1
#define MR 4
#define NV 4
static inline vf    vf_zero(void) { return 0.0f; }
static inline vf    vf_set1(float x) { return x; }
static inline vf    vf_load(const float * p) { return *p; }
static inline void  vf_store(float * p, vf a) { *p = a; }
static inline vf    vf_add(vf a, vf b) { return a + b; }
static inline vf    vf_sub(vf a, vf b) { return a - b; }
static inline vf    vf_mul(vf a, vf b) { return a * b; }
static inline vf    vf_div(vf a, vf b) { return a / b; }
static inline vf    vf_max(vf a, vf b) { return a > b ? a : b; }
static inline vf    vf_fma(vf a, vf b, vf c) { return a * b + c; }
static inline float vf_sum(vf a) { return a; }
static inline float vf_hmax(vf a) { return a; }
static inline vf    vf_f16(const uint16_t * p) {
    const uint32_t sign = (uint32_t) (*p & 0x8000) << 16, mant = *p & 0x03ff;
    const int      exp = (*p >> 10) & 31;
    if (exp == 0) { /* zero or subnormal: mant * 2^-24 */
        const float y = (float) mant * 5.9604645e-8f;
        return sign ? -y : y;
    }
    const uint32_t bits = sign | (exp == 31 ? 0x7f800000u : (uint32_t) (exp + 112) << 23) | mant << 13;
    float          y;
    memcpy(&y, &bits, sizeof(y));
    return y;
}
static inline vf vf_bf16(const uint16_t * p) {
    const uint32_t bits = (uint32_t) *p << 16;
    float          y;
    memcpy(&y, &bits, sizeof(y));
    return y;
}
static inline vf vf_i8(const int8_t * p) { return (float) *p; }
static inline vf vf_i4(const uint8_t * p, bool high) { return (float) ((high ? *p >> 4 : *p & 15) - 8); }
static inline vf vf_i5(const uint8_t * p, bool high, uint32_t bits) {
    return vf_i4(p, high) + (float) (bits & 1) * 16.0f - 8.0f;
}
static inline vf vf_nl(const uint8_t * p, bool high) {
    static const int8_t values[16] = { NL_VALUES };
    return (float) values[high ? *p >> 4 : *p & 15];
}
static inline float f16_one(uint16_t x) { return vf_f16(&x); }
static inline bool  vf_any_gt(vf a, vf b) { return a > b; }
static inline vf    vf_exp2(vf x) { return x < EXP2_MIN ? 0.0f : exp2f(x); }
static inline void  vf_sum4(vf a, vf b, vf c, vf d, float * out) {
    out[0] = a;
    out[1] = b;
    out[2] = c;
    out[3] = d;
}
static inline void vf_transpose(vf * r) { (void) r; }

#endif
