/* rotate.h - a row's rotation and its Hadamard transform, for the kernels and for passes over the cache. */
#ifndef PLONG_ROTATE_H
#define PLONG_ROTATE_H

#include <math.h>
#include <stdbool.h>

/* x [n_rot..]: rotates the pairs by the angles [n_rot/2][2] in place */
static inline void row_rotate(float * x, const float * angles, int n_rot, bool neox) {
    const int half = n_rot / 2;
    for (int i = 0; i < half; i++) {
        float *     a = neox ? x + i : x + 2 * i;
        float *     b = neox ? x + i + half : x + 2 * i + 1;
        const float c = angles[2 * i], s = angles[2 * i + 1];
        const float x0 = *a, x1 = *b;
        *a = x0 * c - x1 * s;
        *b = x0 * s + x1 * c;
    }
}

/* x [d]: orthonormal Walsh-Hadamard transform (Sylvester order) of each block of n; its own inverse */
static inline void row_hadamard(float * x, int d, int n) {
    const float norm = 1.0f / sqrtf((float) n);
    for (int b = 0; b < d; b += n) {
        for (int step = 1; step < n; step *= 2) {
            for (int i = 0; i < n; i += 2 * step) {
                for (int j = i; j < i + step; j++) {
                    const float u = x[b + j], v = x[b + j + step];
                    x[b + j]        = u + v;
                    x[b + j + step] = u - v;
                }
            }
        }
        for (int i = 0; i < n; i++) {
            x[b + i] *= norm;
        }
    }
}

#endif
