/* gemm.h - the one matrix product of the float32 bodies, on packed panels. */
#ifndef PLONG_CPU_BODY_GEMM_H
#define PLONG_CPU_BODY_GEMM_H

#define PANEL (NV * VW) /* columns of a panel; divides 32 */

/* c[MR][PANEL] (+)= a[MR][n] * b[n][PANEL]; b contiguous */
PLONG_INLINE void gemm_block(int n, const float * a, int lda, const float * b, float * c, int ldc, const bool add) {
    vf acc[MR][NV];
    for (int i = 0; i < MR; i++) {
        for (int j = 0; j < NV; j++) {
            acc[i][j] = add ? vf_load(c + i * ldc + j * VW) : vf_zero();
        }
    }
    for (int k = 0; k < n; k++) {
        vf row[NV];
        for (int j = 0; j < NV; j++) {
            row[j] = vf_load(b + k * PANEL + j * VW);
        }
        for (int i = 0; i < MR; i++) {
            const vf x = vf_set1(a[i * lda + k]);
            for (int j = 0; j < NV; j++) {
                acc[i][j] = vf_fma(x, row[j], acc[i][j]);
            }
        }
    }
    for (int i = 0; i < MR; i++) {
        for (int j = 0; j < NV; j++) {
            vf_store(c + i * ldc + j * VW, acc[i][j]);
        }
    }
}

/* [rows][stride], with as many rows as the next multiple of MR */
struct matrix_in {
    const float * x;
    int           stride;
};

struct matrix_out {
    float * x;
    int     stride;
};

/* [cols / PANEL] panels of [depth][PANEL] */
struct panels_in {
    const float * x;
    int           depth;
};

/* c[rows][cols] (+)= a[rows][n] * b, n <= depth */
PLONG_INLINE void gemm(
    int rows, int cols, int n, struct matrix_in a, struct panels_in b, struct matrix_out c, const bool add) {
    for (int j = 0; j < cols; j += PANEL) {
        for (int i = 0; i < rows; i += MR) {
            const float * panel = b.x + (size_t) j * b.depth;
            gemm_block(n, a.x + i * a.stride, a.stride, panel, c.x + i * c.stride + j, c.stride, add);
        }
    }
}

#endif
