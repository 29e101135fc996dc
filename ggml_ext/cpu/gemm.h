/* gemm.h - the one matrix product of the kernels: C[rows][cols] (+)= A[rows][n] * B[n][cols], f32. */
#ifndef PLONG_CPU_GEMM_H
#define PLONG_CPU_GEMM_H

#include "simd.h"

/* mr x nv register block; mr and nv are constants at every call, so the loops unroll */
static inline __attribute__((always_inline)) void gemm_block(
    const int mr, const int nv, int n, const float * a, int lda, const float * b, int ldb, float * c, int ldc,
    bool add) {
    vf acc[MR][NV];
    for (int i = 0; i < mr; i++) {
        for (int j = 0; j < nv; j++) {
            acc[i][j] = add ? vf_load(c + i * ldc + j * VW) : vf_zero();
        }
    }
    for (int k = 0; k < n; k++) {
        vf row[NV];
        for (int j = 0; j < nv; j++) {
            row[j] = vf_load(b + (size_t) k * ldb + j * VW);
        }
        for (int i = 0; i < mr; i++) {
            const vf x = vf_set1(a[i * lda + k]);
            for (int j = 0; j < nv; j++) {
                acc[i][j] = vf_fma(x, row[j], acc[i][j]);
            }
        }
    }
    for (int i = 0; i < mr; i++) {
        for (int j = 0; j < nv; j++) {
            vf_store(c + i * ldc + j * VW, acc[i][j]);
        }
    }
}

/* cols is a multiple of 16 (of VW). */
static void gemm(
    int rows, int cols, int n, const float * a, int lda, const float * b, int ldb, float * c, int ldc, bool add) {
    for (int j = 0; j < cols;) {
        const bool wide = cols - j >= NV * VW;
        int        i    = 0;
        for (; i + MR <= rows; i += MR) {
            if (wide) {
                gemm_block(MR, NV, n, a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc, add);
            } else {
                gemm_block(MR, 1, n, a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc, add);
            }
        }
        for (; i < rows; i++) {
            if (wide) {
                gemm_block(1, NV, n, a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc, add);
            } else {
                gemm_block(1, 1, n, a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc, add);
            }
        }
        j += wide ? NV * VW : VW;
    }
}

#endif
