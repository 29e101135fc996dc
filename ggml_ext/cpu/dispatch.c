/* dispatch.c - the op on ggml's thread pool: each thread takes tile by tile, or segment by segment. */
#include "cpu/dispatch.h"

#include <string.h>

#include "ggml-cpu-impl.h"
#include "cpu/tiles.h"

#define MAX_PARTS (1 << 25) /* bytes of states of segments */

/* ---- sizes ---------------------------------------------------------------------------------------------------- */

static size_t align64(size_t n) { return (n + 63) & ~(size_t) 63; }

/* What thread 0 found out for the others. */
struct work_head {
    int64_t n_tiles;
    int64_t n_items; /* more than n_tiles where each segment of a tile is one */
    int32_t rows;    /* of the largest tile */
};

/* Everything in wdata, in bytes from its start, after a struct work_head. What is always written comes first: other ops
 * use the same memory, and pages that nobody writes cost nothing. */
struct work {
    size_t  threads; /* per thread: a state of the largest tile's rows, then the kernel's scratch */
    size_t  per_thread;
    size_t  state;    /* bytes of that state */
    size_t  tiles;    /* struct plong_tile[] */
    size_t  partials; /* f32: m[], l[], acc[][dv] of rows whose segments are items */
    size_t  total;
    int64_t max_tiles;
    int64_t max_rows; /* partial rows */
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

static struct work work_layout(const struct ggml_tensor * op, int n_threads) {
    const struct ggml_tensor * q   = op->src[0];
    const int32_t              d_k = (int32_t) q->ne[0], d_v = (int32_t) op->ne[0], dv = plong_pad32(d_v);
    const int64_t              rows = q->ne[1] * q->ne[2];
    const int32_t              most = (int32_t) min_i64(rows, PLONG_DILATED_ROWS * plong_row_limit(d_k, d_v));
    struct work                w;
    w.max_tiles  = rows;
    w.state      = align64((size_t) most * (dv + 2) * sizeof(float));
    w.threads    = align64(sizeof(struct work_head));
    w.per_thread = w.state + align64(largest_scratch(d_k, d_v, most, op->src[4] != NULL));
    /* segments are items only while there are fewer tiles than wanted, each as small as they get */
    const int64_t tiles = plong_tiles_wanted(n_threads), cells = op->src[1]->ne[2];
    const int64_t wide = cells / PLONG_SEGMENT + 2, narrow = PLONG_NARROW_SEGMENTS + 3;
    const int64_t segments = wide > narrow ? wide : narrow;
    w.max_rows             = min_i64(tiles * PLONG_DILATED_ROWS * plong_min_rows(d_k, d_v), rows) * segments;
    w.max_rows             = min_i64(w.max_rows, MAX_PARTS / (int64_t) ((dv + 2) * sizeof(float)));
    w.tiles                = w.threads + w.per_thread * (size_t) n_threads;
    w.partials             = w.tiles + align64((size_t) w.max_tiles * sizeof(struct plong_tile));
    w.total                = w.partials + align64((size_t) (w.max_rows * (dv + 2)) * sizeof(float)) + 64;
    return w;
}

size_t plong_cpu_work_size(const struct ggml_tensor * op, int n_threads) { return work_layout(op, n_threads).total; }

bool plong_cpu_supports(const struct ggml_tensor * op) {
    struct plong_attn_params params;
    memcpy(&params, op->op_params, sizeof(params));
    return plong_attn_supports(op->src[0], op->src[1], op->src[2], &params) == NULL;
}

/* ---- one call ------------------------------------------------------------------------------------------------- */

static struct plong_call make_call(const struct ggml_tensor * op, const struct plong_queue * queue) {
    const struct ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2];
    struct plong_call         c = {
        .q          = q->data,
        .k          = k->data,
        .v          = v->data,
        .out        = op->data,
        .q_head     = q->nb[1],
        .q_tok      = q->nb[2],
        .k_head     = k->nb[1],
        .k_cell     = k->nb[2],
        .k_stream   = k->nb[3],
        .v_head     = v->nb[1],
        .v_cell     = v->nb[2],
        .v_stream   = v->nb[3],
        .k_type     = k->type,
        .v_type     = v->type,
        .d_k        = (int32_t) q->ne[0],
        .d_v        = (int32_t) op->ne[0],
        .n_head     = (int32_t) q->ne[1],
        .n_group    = (int32_t) (q->ne[1] / k->ne[1]),
        .batch      = (const struct plong_batch *) op->src[3]->data,
        .table      = op->src[4] ? (const float *) op->src[4]->data : NULL,
        .queue      = queue,
        .one_stream = plong_one_stream(),
    };
    memcpy(&c.params, op->op_params, sizeof(c.params));
    return c;
}

static void empty_state(struct plong_state * s, int rows) {
    for (int r = 0; r < rows; r++) {
        s->m[r] = -INFINITY;
        s->l[r] = 0.0f;
    }
}

/* Rows without any key give zeros. */
static void write_rows(const struct plong_call * c, const struct plong_tile * tile, const struct plong_state * s) {
    const int dv = plong_pad32(c->d_v), rows = plong_tile_rows(tile);
    for (int r = 0; r < rows; r++) {
        const int kv = r / (tile->n_tok * tile->n_h), tok = tile->tok + r / tile->n_h % tile->n_tok;
        const int head = tile->head0 + kv * c->n_group + r % tile->n_h;
        float *   out  = (float *) c->out + ((size_t) tok * c->n_head + head) * c->d_v;
        if (s->l[r] == 0.0f) {
            memset(out, 0, (size_t) c->d_v * sizeof(float));
            continue;
        }
        const float norm = 1.0f / s->l[r];
        for (int i = 0; i < c->d_v; i++) {
            out[i] = s->acc[(size_t) r * dv + i] * norm;
        }
    }
}

/* State of `rows` rows in a flat buffer of rows * (dv + 2) floats. */
static struct plong_state state_at(float * base, int64_t rows) {
    return (struct plong_state) { .m = base, .l = base + rows, .acc = base + 2 * rows };
}

static int32_t most_rows(const struct plong_tile * tiles, int64_t n) {
    int32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        const int32_t rows = plong_tile_rows(&tiles[i]);
        most               = rows > most ? rows : most;
    }
    return most;
}

/* Merges the segments of one tile, of which each has a part of `size` floats, and writes its rows. */
static void finish_tile(
    const struct plong_call * c, const struct plong_kernel * kernel, const struct plong_tile * tile, float * parts,
    size_t size) {
    const int          rows = plong_tile_rows(tile), dv = plong_pad32(c->d_v);
    struct plong_state into = state_at(parts, rows);
    for (int32_t i = 1; i < tile->seg1; i++) {
        const struct plong_state from = state_at(parts + i * size, rows);
        for (int r = 0; r < rows; r++) {
            kernel->merge(
                &into.m[r], &into.l[r], into.acc + (size_t) r * dv, from.m[r], from.l[r], from.acc + (size_t) r * dv,
                dv);
        }
    }
    write_rows(c, tile, &into);
}

/* Tokens that belong to no group read nothing. The others must stay: the result may lie where the queries are, which
 * tiles read before they write. Groups ascend in tokens. */
static void zero_strays(const struct plong_call * c) {
    const size_t               row = (size_t) c->n_head * c->d_v * sizeof(float);
    const struct plong_group * g   = plong_batch_groups(c->batch);
    int32_t                    at  = 0;
    for (int i = 0; i <= c->batch->n_groups; i++) {
        const int32_t next = i < c->batch->n_groups ? g[i].tok : c->batch->n_tokens;
        if (next > at) {
            memset(c->out + at * row, 0, (size_t) (next - at) * row);
        }
        at = i < c->batch->n_groups ? g[i].tok + g[i].n : at;
    }
}

void plong_cpu_compute(const struct ggml_compute_params * params, struct ggml_tensor * op) {
    struct plong_queue          queue;
    const struct plong_call     call   = make_call(op, &queue);
    const bool                  f32    = call.batch->precision == PLONG_PRECISION_F32;
    const struct plong_kernel * kernel = f32 ? plong_kernel_in_use()->f32 : plong_kernel_in_use();
    const struct work           work   = work_layout(op, params->nth);
    GGML_ASSERT(params->wsize >= work.total);

    char *              base  = (char *) align64((size_t) params->wdata);
    struct work_head *  head  = (struct work_head *) base;
    struct plong_tile * tiles = (struct plong_tile *) (base + work.tiles);
    float *             parts = (float *) (base + work.partials);
    char *              mine  = base + work.threads + (size_t) params->ith * work.per_thread;
    const int           dv    = plong_pad32(call.d_v);

    if (params->ith == 0) {
        zero_strays(&call);
        head->n_tiles = plong_make_tiles(&call, params->nth, tiles);
        head->rows    = most_rows(tiles, head->n_tiles);
        head->n_items = plong_share_segments(tiles, head->n_tiles, params->nth, head->rows, work.max_rows);
        ggml_threadpool_chunk_set(params->threadpool, 0);
    }
    ggml_barrier(params->threadpool);

    queue                       = (struct plong_queue) { params->threadpool, tiles, head->n_tiles, head->n_items };
    const bool        shared    = queue.n_items > queue.n_tiles;
    const size_t      part_size = (size_t) head->rows * (dv + 2);
    int64_t           done      = 0;
    struct plong_tile tile;
    for (int64_t item; item = ggml_threadpool_chunk_add(queue.pool, 1), plong_queue_item(&queue, item, &tile); done++) {
        const int          rows  = plong_tile_rows(&tile);
        struct plong_state state = state_at(shared ? parts + item * part_size : (float *) mine, rows);
        empty_state(&state, rows);
        kernel->tile(&call, &tile, &state, mine + work.state);
        if (!shared) {
            write_rows(&call, &tile, &state);
        }
    }
    plong_kernel_count(kernel, done);

    if (shared) {
        ggml_barrier(params->threadpool);
        for (int64_t i = params->ith; i < queue.n_tiles; i += params->nth) {
            finish_tile(&call, kernel, &tiles[i], parts + tiles[i].part * part_size, part_size);
        }
    }
}
