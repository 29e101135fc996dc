/* dispatch.c - runs the op on ggml's thread pool: each thread takes one tile, or span, after another. */
#include "cpu/dispatch.h"

#include <string.h>

#include "ggml-cpu-impl.h"
#include "cpu/queue.h"

#define MAX_PARTS        (1 << 25) /* bytes for the states of spans */
#define TILES_PER_THREAD 8         /* how many are wanted, for balance; tiles are made smaller for it */
#define DILATED_ROWS     2         /* only one row in `rate` uses the keys that a branch has packed */
#define SPAN             8192      /* keys that wide tiles sum as a whole */
#define NARROW_SPAN      512       /* the same for narrow tiles, at least */
#define NARROW_LATENT    128       /* rows of a narrow tile of multi-head latent attention */
#define NARROW_SPANS     32        /* most spans of a narrow tile, besides the ones at the ends of its keys */

/* ---- the backend ---------------------------------------------------------------------------------------------- */

static bool takes_type(enum ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q5_1:
        case GGML_TYPE_IQ4_NL: return true;
        default: return false;
    }
}

const char * plong_cpu_supports(const struct ggml_tensor * op) {
    const struct ggml_tensor *k = op->src[1], *v = op->src[2];
    if (!takes_type(k->type) || !takes_type(v->type)) {
        return "the K or V cache type is not f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1 or iq4_nl";
    }
    if (k->ne[0] > PLONG_MAX_D_K || v->ne[0] > PLONG_MAX_D_V || k->ne[0] % 4 || v->ne[0] % 4) {
        return "a head of K has more than 576 dims, or one of V more than 512, or no multiple of 4";
    }
    return NULL;
}

/* A decoded token of multi-head latent attention has all heads in one tile, which only spans can share among threads. */
static int32_t narrow_limit(const struct plong_shape * s) {
    return s->n_head_kv == 1 && s->d_k > 256 ? NARROW_LATENT : PLONG_NARROW;
}

/* Tiles are not made smaller than this for balance, since packing keys would cost too much. */
static int32_t min_rows(int32_t d_k, int32_t d_v) {
    const int32_t n = plong_row_limit(d_k, d_v) / 4;
    return n > PLONG_NARROW_ROWS ? n : PLONG_NARROW_ROWS;
}

struct plong_limits plong_cpu_limits(const struct plong_shape * shape, int n_threads) {
    const int32_t rows  = plong_row_limit(shape->d_k, shape->d_v),
                  tiles = n_threads > 1 ? n_threads * TILES_PER_THREAD : 0;
    return (struct plong_limits) {
        .max_rows      = rows,
        .min_rows      = min_rows(shape->d_k, shape->d_v),
        .tiles         = tiles,
        .dilated_tiles = tiles / 4,
        .dilated_rows  = DILATED_ROWS,
        .classes       = PLONG_MAX_CLASSES,
        .narrow        = narrow_limit(shape),
        .narrow_rows   = PLONG_NARROW_ROWS,
        .span          = SPAN,
        .narrow_span   = NARROW_SPAN,
        .narrow_spans  = NARROW_SPANS,
        .range_rows    = rows,
    };
}

const struct plong_backend plong_cpu_backend = {
    .name     = "CPU",
    .supports = plong_cpu_supports,
    .limits   = plong_cpu_limits,
};

/* ---- sizes ---------------------------------------------------------------------------------------------------- */

static size_t align64(size_t n) { return (n + 63) & ~(size_t) 63; }

/* Offsets in wdata, in bytes from its start. What is always written comes first: other ops use the same memory, and
 * pages that are never written cost nothing. */
struct scratch {
    size_t  per_thread; /* a state of the largest tile's rows, then the kernel's scratch */
    size_t  state;      /* bytes of that state */
    size_t  partials;   /* f32: m[], l[], acc[][dv] of rows whose spans are items */
    size_t  total;
    int64_t max_rows;     /* of a tile */
    int64_t partial_rows; /* at most */
};

static size_t largest_scratch(int32_t d_k, int32_t d_v, int32_t rows, bool maps) {
    size_t most = 0;
    for (int i = 0; plong_kernels[i]; i++) {
        const size_t n = plong_kernels[i]->scratch(d_k, d_v, rows, maps);
        most           = n > most ? n : most;
    }
    return most;
}

static int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }

static struct scratch scratch_layout(const struct ggml_tensor * op, int n_threads) {
    const struct ggml_tensor * q   = op->src[0];
    const int32_t              d_k = (int32_t) q->ne[0], d_v = (int32_t) op->ne[0], dv = plong_pad32(d_v);
    const int64_t              rows = q->ne[1] * q->ne[2];
    struct scratch             s;
    s.max_rows   = min_i64(rows, DILATED_ROWS * plong_row_limit(d_k, d_v));
    s.state      = align64((size_t) s.max_rows * (dv + 2) * sizeof(float));
    s.per_thread = s.state + align64(largest_scratch(d_k, d_v, (int32_t) s.max_rows, op->src[5] != NULL));
    /* spans are items only if there are fewer tiles than wanted, although these are as small as possible */
    const int64_t tiles = plong_tiles_wanted(n_threads), cells = op->src[1]->ne[2];
    const int64_t wide = cells / SPAN + 2, narrow = NARROW_SPANS + 3;
    s.partial_rows = min_i64(tiles * DILATED_ROWS * min_rows(d_k, d_v), rows) * (wide > narrow ? wide : narrow);
    if (op->src[7]) { /* each kv head has a tile of its own, and each part room for the rows of all */
        s.partial_rows *= 1 + op->src[1]->ne[1];
    }
    s.partial_rows = min_i64(s.partial_rows, MAX_PARTS / (int64_t) ((dv + 2) * sizeof(float)));
    s.partials     = s.per_thread * (size_t) n_threads;
    s.total        = s.partials + align64((size_t) (s.partial_rows * (dv + 2)) * sizeof(float)) + 64;
    return s;
}

size_t plong_cpu_scratch(const struct ggml_tensor * op, int n_threads) { return scratch_layout(op, n_threads).total; }

/* ---- one call ------------------------------------------------------------------------------------------------- */

static void empty_state(struct plong_softmax * s, int rows) {
    for (int r = 0; r < rows; r++) {
        s->m[r] = -INFINITY;
        s->l[r] = 0.0f;
    }
}

/* Writes the rows; those without any key give zeros. */
static void write_rows(const struct plong_call * c, const struct plong_tile * tile, const struct plong_softmax * s) {
    const int dv = plong_pad32(c->d_v), rows = plong_tile_rows(tile);
    for (int r = 0; r < rows; r++) {
        const int32_t tok = plong_row_tok(tile, r), head = plong_row_head(c->work, tile, r);
        float *       out = (float *) c->out + ((size_t) tok * c->n_head + head) * c->d_v;
        if (s->l[r] == 0.0f) {
            memset(out, 0, (size_t) c->d_v * sizeof(float));
            continue;
        }
        const float norm = 1.0f / (s->l[r] + plong_sink_weight(c, head, s->m[r]));
        for (int i = 0; i < c->d_v; i++) {
            out[i] = s->acc[(size_t) r * dv + i] * norm;
        }
    }
}

/* The state of `rows` rows in a flat buffer of rows * (dv + 2) floats. */
static struct plong_softmax state_at(float * base, int64_t rows) {
    return (struct plong_softmax) { .m = base, .l = base + rows, .acc = base + 2 * rows };
}

/* Merges the spans of one tile, whose states have `size` floats each, and writes its rows. */
static void finish_tile(
    const struct plong_call * c, const struct plong_kernel * kernel, const struct plong_tile * tile, float * parts,
    size_t size) {
    const int            rows = plong_tile_rows(tile), dv = plong_pad32(c->d_v);
    struct plong_softmax into = state_at(parts, rows);
    for (int32_t i = 1; i < tile->n_spans; i++) {
        const struct plong_softmax from = state_at(parts + i * size, rows);
        for (int r = 0; r < rows; r++) {
            kernel->merge(
                &into.m[r], &into.l[r], into.acc + (size_t) r * dv, from.m[r], from.l[r], from.acc + (size_t) r * dv,
                dv);
        }
    }
    write_rows(c, tile, &into);
}

void plong_cpu_compute(const struct ggml_compute_params * params, struct ggml_tensor * op) {
    const struct plong_call     call    = plong_call_of(op);
    const struct plong_kernel * kernel  = plong_kernel_at(call.batch->precision);
    const struct scratch        scratch = scratch_layout(op, params->nth);
    GGML_ASSERT(params->wsize >= scratch.total && call.work->tile_rows <= scratch.max_rows);

    char *                   base      = (char *) align64((size_t) params->wdata);
    char *                   mine      = base + (size_t) params->ith * scratch.per_thread;
    float *                  parts     = (float *) (base + scratch.partials);
    const size_t             part_size = (size_t) call.work->tile_rows * (plong_pad32(call.d_v) + 2);
    const struct plong_queue queue     = plong_queue_of(&call, params->threadpool, params->nth, scratch.partial_rows);
    if (params->ith == 0) {
        plong_zero_strays(&call);
        ggml_threadpool_chunk_set(params->threadpool, 0);
    }
    ggml_barrier(params->threadpool);

    struct plong_item item;
    int64_t           done = 0;
    for (int64_t i; (i = plong_queue_take(&queue, &item)) >= 0;) {
        if (plong_tile_idle(&call, item.tile)) {
            continue;
        }
        done++;
        const int            rows  = plong_tile_rows(item.tile);
        struct plong_softmax state = state_at(queue.shared ? parts + i * part_size : (float *) mine, rows);
        empty_state(&state, rows);
        kernel->run(&call, &queue, &item, &state, mine + scratch.state);
        if (!queue.shared) {
            write_rows(&call, item.tile, &state);
        }
    }
    plong_kernel_count(kernel, done);

    if (queue.shared) {
        const struct plong_tile * tiles = plong_work_tiles(call.work);
        ggml_barrier(params->threadpool);
        for (int64_t i = params->ith; i < call.work->n_tiles; i += params->nth) {
            if (!plong_tile_idle(&call, &tiles[i])) {
                finish_tile(&call, kernel, &tiles[i], parts + tiles[i].part * part_size, part_size);
            }
        }
    }
}
