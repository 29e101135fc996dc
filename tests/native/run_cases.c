/*
 * run_cases.c - computes cases of the op that tests/native_cases.py wrote to files, in every instruction set of this
 * processor and with one and three threads, and compares them with the float64 reference in the file.
 *
 *     run_cases FILE...        exit code 1 when an error is larger than the file allows
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml-cpu.h"
#include "ggml.h"
#include "choose.h"
#include "cpu/dispatch.h"

/* Mirrors HEADER in native_cases.py. After it: q, k, v, batch, table, sinks, expected (float64). */
struct header {
    int32_t d_k, d_v, n_head, n_head_kv, n_tokens, k_type, v_type, n_kv, n_stream, n_words, n_table, n_sinks;
    int32_t v_in_k; /* V is the first dims of K's heads, and has no numbers of its own */
    struct plong_attn_params params;
    float                    allowed_f32, allowed_bf16; /* the second one where products are of bf16 */
};

struct input {
    struct header h;
    char *        data;
    size_t        size, at;
};

static struct input read_file(const char * path) {
    struct input in = { 0 };
    FILE *       f  = fopen(path, "rb");
    if (!f || fread(&in.h, sizeof(in.h), 1, f) != 1) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(2);
    }
    fseek(f, 0, SEEK_END);
    in.size = (size_t) ftell(f) - sizeof(in.h);
    fseek(f, sizeof(in.h), SEEK_SET);
    in.data = malloc(in.size);
    if (!in.data || fread(in.data, 1, in.size, f) != in.size) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(2);
    }
    fclose(f);
    return in;
}

static struct ggml_tensor * next_tensor(
    struct input * in, struct ggml_context * ctx, enum ggml_type type, int64_t a, int64_t b, int64_t c, int64_t d) {
    struct ggml_tensor * t = ggml_new_tensor_4d(ctx, type, a, b, c, d);
    const size_t         n = ggml_nbytes(t);
    if (in->at + n > in->size) {
        fprintf(stderr, "file too short\n");
        exit(2);
    }
    memcpy(t->data, in->data + in->at, n);
    in->at += n;
    return t;
}

/* Largest absolute error; NaN counts as infinite. */
static double largest_error(const float * got, const char * expected, int64_t n) {
    double worst = 0;
    for (int64_t i = 0; i < n; i++) {
        double want;
        memcpy(&want, expected + (size_t) i * sizeof(want), sizeof(want));
        const double e = fabs((double) got[i] - want);
        worst          = e <= worst ? worst : isnan(e) ? INFINITY : e;
    }
    return worst;
}

static struct ggml_tensor * work_tensor(
    struct ggml_context * ctx, const struct header * h, const struct plong_batch * batch, int n_threads) {
    const struct plong_shape  shape  = { h->d_k, h->d_v, h->n_head, h->n_head_kv,
                                         h->params.layer < batch->plan.dense_layers };
    const struct plong_limits limits = plong_cpu_limits(&shape, n_threads);
    struct plong_work *       work   = plong_work_new(batch, &shape, &limits);
    if (!work) {
        exit(2);
    }
    struct ggml_tensor * t = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, (int64_t) plong_work_words(work));
    memcpy(t->data, work, ggml_nbytes(t));
    plong_work_free(work);
    return t;
}

static double run(const struct input * file, int n_threads) {
    struct input            in   = *file;
    const struct header *   h    = &in.h;
    struct ggml_init_params init = { .mem_size = 2 * in.size + (64u << 20), .mem_buffer = NULL, .no_alloc = false };
    struct ggml_context *   ctx  = ggml_init(init);
    struct ggml_tensor *    q    = next_tensor(&in, ctx, GGML_TYPE_F32, h->d_k, h->n_head, h->n_tokens, 1);
    struct ggml_tensor *    k =
        next_tensor(&in, ctx, (enum ggml_type) h->k_type, h->d_k, h->n_head_kv, h->n_kv, h->n_stream);
    struct ggml_tensor * v =
        h->v_in_k ? ggml_view_4d(ctx, k, h->d_v, h->n_head_kv, h->n_kv, h->n_stream, k->nb[1], k->nb[2], k->nb[3], 0)
                  : next_tensor(&in, ctx, (enum ggml_type) h->v_type, h->d_v, h->n_head_kv, h->n_kv, h->n_stream);
    struct ggml_tensor * b     = next_tensor(&in, ctx, GGML_TYPE_I32, h->n_words, 1, 1, 1);
    struct ggml_tensor * tab   = h->n_table ? next_tensor(&in, ctx, GGML_TYPE_F32, h->n_table, 1, 1, 1) : NULL;
    struct ggml_tensor * snk   = h->n_sinks ? next_tensor(&in, ctx, GGML_TYPE_F32, h->n_sinks, 1, 1, 1) : NULL;
    struct plong_inputs  x     = { b, work_tensor(ctx, h, b->data, n_threads), tab, snk, NULL, NULL, NULL };
    const size_t         words = plong_work_choice_words(x.work->data);
    const int32_t        parts = plong_plan_index(&((const struct plong_batch *) b->data)->plan);
    if (words > 0 && parts) {
        x.index = ggml_new_tensor_4d(
            ctx, GGML_TYPE_I8, (int64_t) plong_page_bytes(parts, h->d_k), (h->n_kv + PLONG_PAGE - 1) / PLONG_PAGE,
            h->n_head_kv, h->n_stream);
        memset(x.index->data, 0xab, ggml_nbytes(x.index));
    }
    if (words > 0) {
        x.choices = ggml_long_choose(ctx, q, k, v, &x, &h->params, (int64_t) words);
    }
    struct ggml_tensor * out = ggml_long_attn(ctx, q, k, v, &x, &h->params);
    struct ggml_cgraph * g   = ggml_new_graph(ctx);
    ggml_build_forward_expand(g, out);
    struct ggml_cplan plan = ggml_graph_plan(g, n_threads, NULL);
    plan.work_data         = malloc(plan.work_size); /* of its own, so that the sanitizers know where it ends */
    if (plan.work_data) {
        memset(plan.work_data, 0xff, plan.work_size); /* NaN, whatever is read of it before it is written */
    }
    if ((plan.work_size > 0 && !plan.work_data) || ggml_graph_compute(g, &plan) != GGML_STATUS_SUCCESS) {
        exit(2);
    }
    const double e = largest_error((const float *) out->data, in.data + in.at, ggml_nelements(out));
    free(plan.work_data);
    ggml_free(ctx);
    return e;
}

int main(int argc, char ** argv) {
    int failed = 0, passed = 0;
    ggml_cpu_init();
    for (int i = 1; i < argc; i++) {
        struct input file = read_file(argv[i]);
        for (int isa = 0; plong_cpu_isa_name(isa); isa++) {
            if (!plong_cpu_isa_usable(isa)) {
                continue;
            }
            const int64_t before = plong_cpu_isa_tiles(isa);
            plong_cpu_isa_force(plong_cpu_isa_name(isa));
            const bool   bf16    = plong_cpu_isa(PLONG_PRECISION_F32) != plong_cpu_isa(PLONG_PRECISION_AUTO);
            const double allowed = (double) (bf16 ? file.h.allowed_bf16 : file.h.allowed_f32);
            for (int n_threads = 1; n_threads <= 3; n_threads += 2) {
                const double e  = run(&file, n_threads);
                const bool   ok = e <= allowed && plong_cpu_isa_tiles(isa) > before;
                if (!ok) {
                    printf(
                        "%s %s %d threads: error %g, allowed %g\n", argv[i], plong_cpu_isa_name(isa), n_threads, e,
                        allowed);
                }
                passed += ok;
                failed += !ok;
            }
        }
        free(file.data);
    }
    for (int isa = 0; plong_cpu_isa_name(isa); isa++) {
        printf("%s: %lld tiles\n", plong_cpu_isa_name(isa), (long long) plong_cpu_isa_tiles(isa));
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0 || passed == 0;
}
