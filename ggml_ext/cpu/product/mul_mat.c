/*
 * mul_mat.c - runs MUL_MAT and MUL_MAT_ID on ggml's thread pool. Rows of activations are rounded in the order of the
 * matrices (experts) that they are multiplied with, so that each of these has its rows one after another; then threads
 * take one tile of weights after another.
 */
#include "cpu/product/mul_mat.h"

#include <string.h>

#include "ggml-cpu-impl.h"
#include "cpu/kernel.h"
#include "cpu/product/product.h"

#define SMALL           512 /* rows of float32 weights */
#define JOBS_PER_THREAD 4   /* at least, for balance */
#define FEW_ROWS        16  /* of activations: then the time goes into reading weights */
#define LONGEST_RUN     8   /* tiles that a thread then takes at once, so that it can fetch the next one */
#define LEAST_ROWS      48  /* tiles are not split below this, since each part unpacks the weights again */

static int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool plong_product_takes_type(int type) {
    return plong_product_in_use() != NULL && plong_format_of((enum ggml_type) type) != NULL;
}

/* Float32 weights are taken where they choose experts, or are as small: a choice must not depend on the other rows of the
 * batch. For large ones, which models hardly have, upstream is faster with few rows. */
bool plong_product_takes(const struct ggml_tensor * op) {
    const struct ggml_tensor *w = op->src[0], *x = op->src[1];
    return plong_product_takes_type((int) w->type) && (w->type != GGML_TYPE_F32 || w->ne[1] <= SMALL) &&
           w->extra == NULL && x->type == GGML_TYPE_F32 && op->type == GGML_TYPE_F32 &&
           w->nb[0] == ggml_type_size(w->type) && x->nb[0] == sizeof(float) && op->nb[0] == sizeof(float) &&
           w->ne[3] == 1 && (op->op == GGML_OP_MUL_MAT_ID || w->ne[2] == 1);
}

/* ---- work memory ---------------------------------------------------------------------------------------------- */

struct work {
    int64_t                       n_rows; /* of outputs: a row of activations has one for each expert that it goes to */
    int64_t                       n_panels;
    const struct plong_format *   format;
    char *                        x; /* [n_panels][n_rows] of panel_bytes */
    size_t                        panel_bytes;
    struct plong_activation_row * rows;   /* [n_rows] */
    int32_t *                     place;  /* [n_rows]: where among `rows` an output is */
    int32_t *                     starts; /* [experts + 1]: the first row of each */
    char *                        scratch;
    size_t                        per_thread;
};

/* Lays out work memory from base on; returns its size. */
static size_t layout(struct work * w, const struct ggml_tensor * op, int n_threads, uintptr_t base) {
    const int64_t experts = op->src[0]->ne[2];
    uintptr_t     at      = (base + 63) & ~(uintptr_t) 63;
    w->n_rows             = op->ne[1] * op->ne[2] * op->ne[3];
    w->n_panels           = ceil_div(op->src[1]->ne[0], PLONG_PANEL);
    w->format             = plong_format_of(op->src[0]->type);
    w->panel_bytes        = plong_panel_bytes(w->format);
    w->x                  = take_scratch(&at, (size_t) (w->n_rows * w->n_panels) * w->panel_bytes);
    w->rows               = take_scratch(&at, (size_t) w->n_rows * sizeof(*w->rows));
    w->place              = take_scratch(&at, (size_t) w->n_rows * sizeof(*w->place));
    w->starts             = take_scratch(&at, (size_t) (experts + 1) * sizeof(*w->starts));
    w->per_thread         = 0;
    for (int i = 0; plong_products[i]; i++) {
        const size_t size = (plong_products[i]->scratch + 63) & ~(size_t) 63;
        w->per_thread     = size > w->per_thread ? size : w->per_thread;
    }
    w->scratch = take_scratch(&at, w->per_thread * (size_t) n_threads);
    return at - base + 64;
}

size_t plong_mul_mat_scratch(const struct ggml_tensor * op, int n_threads) {
    struct work w;
    return layout(&w, op, n_threads, 0);
}

/* ---- rows ----------------------------------------------------------------------------------------------------- */

/* The expert of an output. */
static int32_t expert_of(const struct ggml_tensor * op, int64_t output) {
    const struct ggml_tensor * ids   = op->src[2];
    const int64_t              token = output / op->ne[1], i = output % op->ne[1];
    return *(const int32_t *) ((const char *) ids->data + token * ids->nb[1] + i * ids->nb[0]);
}

/* Sorts the outputs by expert; those of one stay in order. */
static void sort_rows(const struct ggml_tensor * op, struct work * w) {
    const int64_t experts = op->src[0]->ne[2];
    memset(w->starts, 0, (size_t) (experts + 1) * sizeof(*w->starts));
    for (int64_t i = 0; i < w->n_rows; i++) {
        const int32_t e = expert_of(op, i);
        GGML_ASSERT(e >= 0 && e < experts);
        w->place[i] = w->starts[e + 1]++;
    }
    for (int64_t e = 0; e < experts; e++) {
        w->starts[e + 1] += w->starts[e];
    }
    for (int64_t i = 0; i < w->n_rows; i++) {
        w->place[i] += w->starts[expert_of(op, i)];
    }
}

/* Rounds a panel of a row, once for each expert that the row goes to. */
static void pack_panel(
    const struct plong_product * product, const struct ggml_tensor * op, const struct work * w, int64_t row,
    int64_t panel) {
    const struct ggml_tensor * x  = op->src[1];
    const int64_t              i3 = row / (x->ne[1] * x->ne[2]), i2 = row / x->ne[1] % x->ne[2], i1 = row % x->ne[1];
    const char *               from   = (const char *) x->data + i1 * x->nb[1] + i2 * x->nb[2] + i3 * x->nb[3];
    const int64_t              column = panel * PLONG_PANEL;
    char *                     first  = NULL;
    for (int64_t i = i1; i < op->ne[1]; i += x->ne[1]) {
        const int64_t number = (i3 * op->ne[2] + i2) * op->ne[1] + i;
        const int64_t at     = op->op == GGML_OP_MUL_MAT_ID ? w->place[number] : number;
        char *        to     = w->x + (size_t) (panel * w->n_rows + at) * w->panel_bytes;
        if (first) {
            memcpy(to, first, w->panel_bytes);
        } else {
            const int n = (int) min_i64(x->ne[0] - column, PLONG_PANEL);
            product->pack(w->format, (const float *) from + column, n, to);
            first = to;
        }
        if (panel == 0) {
            char * out  = (char *) op->data + i * op->nb[1] + i2 * op->nb[2] + i3 * op->nb[3];
            w->rows[at] = (struct plong_activation_row) { to, (float *) out };
        }
    }
}

/* ---- tiles ---------------------------------------------------------------------------------------------------- */

/* What threads take: runs of tiles of the experts that have rows, each perhaps in parts of the rows. */
struct jobs {
    const struct ggml_tensor *   op;
    const struct work *          work;
    const struct plong_product * product;
    int64_t                      n_tiles, run;  /* of an expert; of a job */
    int64_t                      n_parts, part; /* of a tile; rows of a part */
};

static struct jobs jobs_of(
    const struct plong_product * product, const struct ggml_tensor * op, const struct work * w, int n_threads) {
    const int64_t n_tiles = ceil_div(op->src[0]->ne[1], product->tile), wanted = JOBS_PER_THREAD * n_threads;
    int64_t       parts = 1, run = 1;
    if (op->op == GGML_OP_MUL_MAT && n_threads > 1 && n_tiles < wanted) {
        parts = min_i64(ceil_div(wanted, n_tiles), ceil_div(w->n_rows, LEAST_ROWS));
    } else if (w->n_rows <= FEW_ROWS && n_tiles > wanted) {
        run = min_i64(n_tiles / wanted, LONGEST_RUN);
    }
    return (struct jobs) { op, w, product, n_tiles, run, parts, ceil_div(w->n_rows, parts) };
}

/* The first weight row of a tile. */
static const char * weights_at(const struct jobs * j, int64_t expert, int64_t tile) {
    const struct ggml_tensor * w = j->op->src[0];
    return (const char *) w->data + expert * w->nb[2] + tile * j->product->tile * w->nb[1];
}

/* Multiplies the rows beg <= i < end with a tile. next: the one that this thread takes then, probably. */
static void run_tile(
    const struct jobs * j, int64_t expert, int64_t tile, const char * next, int64_t beg, int64_t end, void * scratch) {
    const struct ggml_tensor *      w     = j->op->src[0];
    const int64_t                   first = tile * j->product->tile;
    const struct plong_tile_product job   = {
        .format    = j->work->format,
        .weights   = weights_at(j, expert, tile),
        .next      = next,
        .row_bytes = w->nb[1],
        .columns   = w->ne[0],
        .first     = first,
        .n_weights = (int32_t) min_i64(w->ne[1] - first, j->product->tile),
        .rows      = j->work->rows + beg,
        .n_rows    = end - beg,
        .stride    = (size_t) j->work->n_rows * j->work->panel_bytes,
    };
    j->product->run(&job, scratch);
}

/* Runs job i; later: the next one that is free. False: there are no more. */
static bool run_job(const struct jobs * j, int64_t i, int64_t later, void * scratch) {
    const int64_t runs = ceil_div(j->n_tiles, j->run), experts = j->op->src[0]->ne[2];
    const int64_t expert = i / (runs * j->n_parts), tile = i / j->n_parts % runs * j->run;
    if (expert >= experts) {
        return false;
    }
    const int64_t beg  = j->work->starts[expert] + i % j->n_parts * j->part;
    const int64_t end  = min_i64(beg + j->part, j->work->starts[expert + 1]);
    const int64_t last = min_i64(tile + j->run, j->n_tiles) - 1, next = min_i64(later / j->n_parts, runs * experts - 1);
    for (int64_t t = tile; t <= last && beg < end; t++) {
        const char * then = t < last ? weights_at(j, expert, t + 1) : weights_at(j, next / runs, next % runs * j->run);
        run_tile(j, expert, t, then, beg, end, scratch);
    }
    return true;
}

void plong_mul_mat(const struct ggml_compute_params * params, struct ggml_tensor * op) {
    const struct plong_product * product = plong_product_in_use();
    const struct ggml_tensor *   x       = op->src[1];
    struct work                  w;
    const size_t                 size = layout(&w, op, params->nth, (uintptr_t) params->wdata);
    GGML_ASSERT(params->wsize >= size);

    if (params->ith == 0) {
        if (op->op == GGML_OP_MUL_MAT_ID) {
            sort_rows(op, &w);
        } else {
            w.starts[0] = 0;
            w.starts[1] = (int32_t) w.n_rows;
        }
        ggml_threadpool_chunk_set(params->threadpool, 0);
    }
    if (op->op == GGML_OP_MUL_MAT_ID) {
        ggml_barrier(params->threadpool);
    }
    const int64_t n_rows = ggml_nrows(x);
    for (int64_t i = params->ith; i < n_rows * w.n_panels; i += params->nth) {
        pack_panel(product, op, &w, i % n_rows, i / n_rows);
    }
    ggml_barrier(params->threadpool);

    const struct jobs jobs    = jobs_of(product, op, &w, params->nth);
    char *            scratch = w.scratch + w.per_thread * (size_t) params->ith;
    int64_t           done    = 0;
    for (int64_t i = 0, more = 1; more; done += more) {
        i    = ggml_threadpool_chunk_add(params->threadpool, 1);
        more = run_job(&jobs, i, ggml_threadpool_chunk_add(params->threadpool, 0), scratch);
    }
    plong_product_count(product, done);
}
