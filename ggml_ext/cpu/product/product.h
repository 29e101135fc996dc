/*
 * product.h - products of weights with activations: ggml's mul_mat and mul_mat_id for the types of formats.c.
 *
 * Activations are rounded to 8 bits, with a scale for each 32 of them. A tile of weight rows is unpacked, a panel of
 * PLONG_PANEL columns at a time, into the codes that the processor multiplies best; all rows of activations are then
 * multiplied with it. Whatever the number of rows, threads and chunks, an output is the same sum in the same order,
 *
 *     sum over groups g of (scale_w[g] * scale_x[g]) * (codes_w[g] . codes_x[g]) + min_w[g] * sum_x[g],
 *
 * where the dot product is an integer, and each group adds to the sum by one fused multiply-add (two with min_w). So its
 * bits depend on nothing else. Weights in floating point are multiplied as float32, column after column, each by one fused
 * multiply-add.
 */
#ifndef PLONG_CPU_PRODUCT_H
#define PLONG_CPU_PRODUCT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PLONG_PANEL  512                /* columns that are unpacked at once */
#define PLONG_GROUPS (PLONG_PANEL / 16) /* most groups of a panel: columns that share a scale */

/* How a type stores weights: w = scale * (code - offset), or scale * code + min; or as numbers. */
struct plong_format {
    enum ggml_type type;
    bool           floats; /* then the rest is 0 */
    int32_t        group;  /* columns that share a scale: 16 or 32 */
    int32_t        offset; /* of the codes, which are unsigned when they are unpacked */
    bool           mins;   /* groups have a min */
    bool           wide;   /* codes are above 127 */
};

/* The quantized types: name, enum, columns that share a scale, offset, whether groups have mins, codes above 127 */
#define PLONG_FORMATS(F)                              \
    F(q8_0, GGML_TYPE_Q8_0, 32, 128, false, true)     \
    F(q4_0, GGML_TYPE_Q4_0, 32, 8, false, false)      \
    F(q4_1, GGML_TYPE_Q4_1, 32, 0, true, false)       \
    F(q5_0, GGML_TYPE_Q5_0, 32, 16, false, false)     \
    F(q5_1, GGML_TYPE_Q5_1, 32, 0, true, false)       \
    F(iq4_nl, GGML_TYPE_IQ4_NL, 32, 128, false, true) \
    F(mxfp4, GGML_TYPE_MXFP4, 32, 12, false, false)   \
    F(q4_k, GGML_TYPE_Q4_K, 32, 0, true, false)       \
    F(q5_k, GGML_TYPE_Q5_K, 32, 0, true, false)       \
    F(q6_k, GGML_TYPE_Q6_K, 16, 32, false, false)

/* The format of a type, or NULL if its products are upstream's. */
const struct plong_format * plong_format_of(enum ggml_type type);

/* A panel of one row of activations, x = scale * q. */
struct plong_activations {
    int8_t q[PLONG_PANEL];
    float  scale[PLONG_GROUPS]; /* of each group of the weights; 32 columns have the same */
    union {
        int32_t shift[PLONG_GROUPS]; /* -offset * the sum of q, for each group */
        float   sum[PLONG_GROUPS];   /* scale * the sum of q, where groups have mins */
    };
};

/* Bytes of a panel of one row: struct plong_activations, or float[PLONG_PANEL]. */
static inline size_t plong_panel_bytes(const struct plong_format * format) {
    return format->floats ? PLONG_PANEL * sizeof(float) : sizeof(struct plong_activations);
}

/* A row of activations and where its outputs go. */
struct plong_activation_row {
    const void * x;   /* the first panel; the next ones are `stride` bytes apart */
    float *      out; /* [weight rows] */
};

/* A tile of weight rows times some rows of activations. */
struct plong_tile_product {
    const struct plong_format *         format;
    const char *                        weights;   /* the first row */
    const char *                        next;      /* the tile that comes next, perhaps: fetched ahead of its use */
    size_t                              row_bytes; /* from one weight row to the next */
    int64_t                             columns;
    int64_t                             first; /* of the weight rows: the place of their outputs */
    int32_t                             n_weights;
    const struct plong_activation_row * rows; /* their panels follow each other */
    int64_t                             n_rows;
    size_t                              stride; /* bytes from a panel of a row to the next one */
};

/* The code for one instruction set. */
struct plong_product {
    const char * name;
    bool (*usable)(void);
    int32_t tile;    /* weight rows of a tile */
    size_t  scratch; /* bytes that run() needs, aligned to 64 */
    /* Rounds n columns of a row of activations, a panel. */
    void (*pack)(const struct plong_format * format, const float * x, int n, void * to);
    void (*run)(const struct plong_tile_product * job, void * scratch);
};

extern const struct plong_product * const plong_products[]; /* best first, NULL ends */

/* What runs. NULL: upstream's products. */
const struct plong_product * plong_product_in_use(void);

/* Counts tiles that were computed. */
void plong_product_count(const struct plong_product * product, int64_t tiles);

#ifdef __cplusplus
}
#endif

#endif
