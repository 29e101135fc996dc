/*
 * vf.h - the contract of simd/: one vector of floats, `vf`, per instruction set, and what all of them share. The shared
 * bodies (body/) only use these names. A file of simd/ defines:
 *
 *     vf, VW                      the vector, and its number of lanes: 1, 4, 8 or 16
 *     MR, NV                      the register block of gemm.h: MR rows x NV vectors of sums
 *     vf_zero set1 load store add sub mul div max fma      a * b + c; loads and stores need no alignment
 *     vf_sum, vf_hmax             over the lanes
 *     vf_f16, vf_bf16, vf_i8      VW values from memory as floats
 *     vf_i4(p, high)              the low or the high nibbles of VW bytes, less 8
 *     vf_i5(p, high, bits)        the same with a fifth bit each, less 16: the lowest VW of bits
 *     vf_nl(p, high)              the integers that they stand for in iq4_nl
 *     f16_one                     one half as a float
 *     vf_any_gt(a, b)             whether a > b in some lane
 *     vf_exp2                     2^x; 0 below EXP2_MIN; NaN stays NaN
 *     vf_sum4(a, b, c, d, out)    the four sums over lanes
 *     vf_transpose(r)             r[VW] as a square
 */
#ifndef PLONG_CPU_SIMD_VF_H
#define PLONG_CPU_SIMD_VF_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* 2^r for |r| <= 1/2: minimax, relative error below 2e-9 */
#define EXP2_C1  0.693147206f
#define EXP2_C2  0.240226469f
#define EXP2_C3  0.0555032878f
#define EXP2_C4  0.00961848896f
#define EXP2_C5  0.00133999312f
#define EXP2_C6  0.000153458120f
#define EXP2_MIN (-126.0f) /* below this the result is 0 */

/* 2^r for 0 <= r < 1: minimax, relative error below 8e-5; bf16 rounds at 2e-3 */
#define EXP2_B0 0.999925219f
#define EXP2_B1 0.695833541f
#define EXP2_B2 0.226067155f
#define EXP2_B3 0.0780245226f

/* The integers of iq4_nl, by nibble */
#define NL_VALUES -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113

#define PLONG_INLINE static inline __attribute__((always_inline))

#endif
