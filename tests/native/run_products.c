/*
 * run_products.c - products with quantized weights for the sanitizers: every code that this processor can run, every type,
 * columns and rows that no tile divides, and experts. All memory has exactly the size that was asked for. A row must have
 * the bits that it has alone, and be near upstream's; then the weights are random bytes, which must only do no harm.
 *
 *     run_products        exit code 1 when a row is wrong
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml-cpu.h"
#include "ggml_ext.h"

#define N(array) (int) (sizeof(array) / sizeof((array)[0]))

static const enum ggml_type TYPES[]   = { GGML_TYPE_F32,  GGML_TYPE_Q8_0, GGML_TYPE_Q4_0,   GGML_TYPE_Q4_1,
                                          GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_IQ4_NL, GGML_TYPE_MXFP4,
                                          GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K };
static const int64_t        BLOCKS[]  = { 1, 3, 17 }; /* columns, in blocks of the type */
static const int64_t        WEIGHTS[] = { 1, 37 };
static const int64_t        ROWS[]    = { 1, 3, 13 };

static uint32_t random_state = 1;
static long     checked, wrong;

static float random_float(void) {
    random_state = random_state * 1664525u + 1013904223u;
    return (float) (random_state >> 8) / (float) (1 << 23) - 1.0f;
}

static void * exactly(size_t size) {
    void * p = malloc(size);
    if (!p) {
        abort();
    }
    return p;
}

/* Computes a graph of one node; its output is malloc'ed. */
static float * compute(struct ggml_context * ctx, struct ggml_tensor * out, int n_threads) {
    struct ggml_cgraph * graph = ggml_new_graph(ctx);
    out->data                  = exactly(ggml_nbytes(out));
    ggml_build_forward_expand(graph, out);
    struct ggml_cplan plan = ggml_graph_plan(graph, n_threads, NULL);
    plan.work_data         = plan.work_size ? exactly(plan.work_size) : NULL;
    if (ggml_graph_compute(graph, &plan) != GGML_STATUS_SUCCESS) {
        abort();
    }
    free(plan.work_data);
    return out->data;
}

/* Outputs [rows][weights], or with ids [rows], whose row i goes to expert ids[i]. */
static float * product(struct ggml_tensor w, const int64_t ne[3], const float * x, const int32_t * ids, int n_threads) {
    struct ggml_context * ctx     = ggml_init((struct ggml_init_params) { 1 << 20, NULL, true });
    struct ggml_tensor *  weights = ggml_new_tensor_3d(ctx, w.type, w.ne[0], w.ne[1], w.ne[2]);
    struct ggml_tensor *  y       = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, ne[0], ne[1], ne[2]), *out;
    weights->data                 = w.data;
    y->data                       = exactly(ggml_nbytes(y));
    memcpy(y->data, x, ggml_nbytes(y));
    if (ids) {
        struct ggml_tensor * which = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, 1, ne[2]);
        which->data                = exactly(ggml_nbytes(which));
        memcpy(which->data, ids, ggml_nbytes(which));
        out           = ggml_mul_mat_id(ctx, weights, y, which);
        float * found = compute(ctx, out, n_threads);
        free(which->data);
        free(y->data);
        ggml_free(ctx);
        return found;
    }
    out           = ggml_mul_mat(ctx, weights, y);
    float * found = compute(ctx, out, n_threads);
    free(y->data);
    ggml_free(ctx);
    return found;
}

static void expect(bool right, const char * what, const char * code, enum ggml_type type, int64_t columns) {
    checked++;
    if (!right) {
        wrong++;
        printf("%s, %s, %d columns: %s\n", code, ggml_type_name(type), (int) columns, what);
    }
}

static void fill(struct ggml_tensor * w, bool bytes) {
    const int64_t rows = w->ne[1] * w->ne[2];
    float *       x    = exactly((size_t) (rows * w->ne[0]) * sizeof(float));
    for (int64_t i = 0; i < rows * w->ne[0]; i++) {
        x[i] = random_float();
    }
    if (w->type == GGML_TYPE_F32) {
        memcpy(w->data, x, (size_t) (rows * w->ne[0]) * sizeof(float));
    } else {
        ggml_quantize_chunk(w->type, x, w->data, 0, rows, w->ne[0], NULL);
    }
    for (size_t i = 0; bytes && i < ggml_row_size(w->type, w->ne[0]) * (size_t) rows; i++) {
        ((uint8_t *) w->data)[i] = (uint8_t) (random_float() * 128);
    }
    free(x);
}

static void check(const char * code, enum ggml_type type, int64_t columns, int64_t n, int64_t rows, bool bytes) {
    struct ggml_tensor w      = { .type = type, .ne = { columns, n, 3, 1 } };
    const size_t       matrix = ggml_row_size(type, columns) * (size_t) n;
    float *            x      = exactly((size_t) (columns * rows) * sizeof(float));
    int32_t            ids[16];
    w.data = exactly(3 * matrix);
    fill(&w, bytes);
    for (int64_t i = 0; i < columns * rows; i++) {
        x[i] = random_float();
    }
    for (int64_t i = 0; i < rows; i++) {
        ids[i] = i % 5 ? 2 : 0;
    }
    float *            mixed = product(w, (int64_t[]) { columns, 1, rows }, x, ids, 3);
    struct ggml_tensor one   = w;
    one.ne[2]                = 1;
    float * together         = product(one, (int64_t[]) { columns, rows, 1 }, x, NULL, 2);
    plong_product_force("upstream");
    float * upstream = product(one, (int64_t[]) { columns, rows, 1 }, x, NULL, 1);
    plong_product_force(code);
    for (int64_t i = 0; i < rows; i++) {
        const float * row   = x + i * columns;
        float *       alone = product(one, (int64_t[]) { columns, 1, 1 }, row, NULL, 1);
        expect(
            !memcmp(alone, together + i * n, (size_t) n * sizeof(float)), "a row has other bits in company", code, type,
            columns);
        free(alone);
        struct ggml_tensor expert = one;
        expert.data               = (char *) w.data + (size_t) ids[i] * matrix;
        alone                     = product(expert, (int64_t[]) { columns, 1, 1 }, row, NULL, 1);
        expect(
            !memcmp(alone, mixed + i * n, (size_t) n * sizeof(float)), "an expert's row has other bits", code, type,
            columns);
        free(alone);
        for (int64_t j = 0; j < n && !bytes; j++) {
            const float a = together[i * n + j], b = upstream[i * n + j];
            expect(fabsf(a - b) <= 0.02f * sqrtf((float) columns), "far from upstream's", code, type, columns);
        }
    }
    free(w.data);
    free(x);
    free(mixed);
    free(together);
    free(upstream);
}

int main(void) {
    ggml_cpu_init();
    const char * code;
    for (int i = 0; (code = plong_product_name(i)); i++) {
        if (!plong_product_usable(i)) {
            continue;
        }
        plong_product_force(code);
        for (int t = 0; t < N(TYPES); t++) {
            for (int c = 0; c < N(BLOCKS); c++) {
                for (int k = 0; k < N(WEIGHTS) * N(ROWS); k++) {
                    const int64_t columns = BLOCKS[c] * (TYPES[t] == GGML_TYPE_F32 ? 31 : ggml_blck_size(TYPES[t]));
                    check(code, TYPES[t], columns, WEIGHTS[k % N(WEIGHTS)], ROWS[k / N(WEIGHTS)], k % 3 == 2);
                }
            }
        }
        printf("%s: %lld tiles\n", code, (long long) plong_product_tiles(i));
    }
    printf("%ld checked, %ld wrong\n", checked, wrong);
    return wrong > 0;
}
