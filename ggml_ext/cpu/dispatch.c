/* dispatch.c - chooses the instruction set, cuts the op into tiles, and shares them out over ggml's thread pool. */
#include "dispatch.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "attn.h"
#include "ggml-cpu-impl.h"

#define MAX_ISAS         8
#define TILES_PER_THREAD 8    /* wanted, for balance: tiles get smaller, then keys are split */
#define DILATED_ROWS     2    /* times the rows of other tiles */
#define SEGMENT          8192 /* keys that are merged as a whole, for tiles of many rows */
#define FEW_SEGMENT      512  /* the same for tiles of few rows: at least, and more where there would be more than */
#define FEW_SEGMENTS     32   /* so many of them */
#define WHOLE            (1 << 30) /* longer than any sequence */
#define MOST_PARTS       (1 << 25) /* bytes of states of segments */

/* ---- the instruction set -------------------------------------------------------------------------------------- */

static _Atomic(const struct plong_kernel *) chosen;
static atomic_llong                         tiles_run[MAX_ISAS];

static int kernel_index(const struct plong_kernel * kernel) {
    int i = 0;
    while (plong_kernels[i] != kernel) {
        i++;
    }
    return i;
}

static const struct plong_kernel * best_kernel(void) {
    for (int i = 0; plong_kernels[i]; i++) {
        if (plong_kernels[i]->usable()) {
            return plong_kernels[i];
        }
    }
    return NULL;
}

static const struct plong_kernel * kernel_named(const char * name) {
    for (int i = 0; plong_kernels[i]; i++) {
        if (strcmp(plong_kernels[i]->name, name) == 0) {
            return plong_kernels[i]->usable() ? plong_kernels[i] : NULL;
        }
    }
    return NULL;
}

static const struct plong_kernel * kernel_in_use(void) {
    const struct plong_kernel * kernel = atomic_load(&chosen);
    if (!kernel) {
        const char * name = getenv("PLLAMA_ISA");
        kernel            = name && *name ? kernel_named(name) : best_kernel();
        if (!kernel) {
            GGML_LOG_WARN(
                "PLLAMA_ISA=%s is unknown or not usable on this processor: using %s\n", name, best_kernel()->name);
            kernel = best_kernel();
        }
        atomic_store(&chosen, kernel);
    }
    return kernel;
}

const char * plong_cpu_isa_name(int i) {
    for (int j = 0; j < i; j++) {
        if (!plong_kernels[j]) {
            return NULL;
        }
    }
    return i >= 0 && plong_kernels[i] ? plong_kernels[i]->name : NULL;
}

bool plong_cpu_isa_usable(int i) { return plong_kernels[i]->usable(); }

bool plong_cpu_isa_force(const char * name) {
    const struct plong_kernel * kernel = name && *name ? kernel_named(name) : best_kernel();
    if (kernel) {
        atomic_store(&chosen, kernel);
    }
    return kernel != NULL;
}

const char * plong_cpu_isa(void) { return kernel_in_use()->name; }

int64_t plong_cpu_isa_tiles(int i) { return atomic_load(&tiles_run[i]); }

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

/* Tiles get no smaller than this for the sake of balance: packing keys would cost too much. */
static int32_t least_rows(int32_t d_k, int32_t d_v) {
    const int32_t n = plong_row_limit(d_k, d_v) / 4;
    return n > PLONG_FEW_ROWS ? n : PLONG_FEW_ROWS;
}

/* So few tiles do not keep every thread busy. */
static int64_t few_tiles(int n_threads) { return TILES_PER_THREAD / 2 * (int64_t) n_threads; }

static struct work work_layout(const struct ggml_tensor * op, int n_threads) {
    const struct ggml_tensor * q   = op->src[0];
    const int32_t              d_k = (int32_t) q->ne[0], d_v = (int32_t) op->ne[0], dv = plong_pad32(d_v);
    const int64_t              rows = q->ne[1] * q->ne[2];
    const int32_t              most = (int32_t) min_i64(rows, DILATED_ROWS * plong_row_limit(d_k, d_v));
    struct work                w;
    w.max_tiles  = rows;
    w.state      = align64((size_t) most * (dv + 2) * sizeof(float));
    w.threads    = align64(sizeof(struct work_head));
    w.per_thread = w.state + align64(largest_scratch(d_k, d_v, most, op->src[4] != NULL));
    /* segments are items only while there are fewer tiles than wanted, each as small as they get */
    const int64_t tiles = few_tiles(n_threads), cells = op->src[1]->ne[2];
    const int64_t wide = cells / SEGMENT + 2, few = FEW_SEGMENTS + 3, segments = wide > few ? wide : few;
    w.max_rows = min_i64(tiles * DILATED_ROWS * least_rows(d_k, d_v), rows) * segments;
    w.max_rows = min_i64(w.max_rows, MOST_PARTS / (int64_t) ((dv + 2) * sizeof(float)));
    w.tiles    = w.threads + w.per_thread * (size_t) n_threads;
    w.partials = w.tiles + align64((size_t) w.max_tiles * sizeof(struct plong_tile));
    w.total    = w.partials + align64((size_t) (w.max_rows * (dv + 2)) * sizeof(float)) + 64;
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
        .q        = q->data,
        .k        = k->data,
        .v        = v->data,
        .out      = op->data,
        .q_head   = q->nb[1],
        .q_tok    = q->nb[2],
        .k_head   = k->nb[1],
        .k_cell   = k->nb[2],
        .k_stream = k->nb[3],
        .v_head   = v->nb[1],
        .v_cell   = v->nb[2],
        .v_stream = v->nb[3],
        .k_type   = k->type,
        .v_type   = v->type,
        .d_k      = (int32_t) q->ne[0],
        .d_v      = (int32_t) op->ne[0],
        .n_head   = (int32_t) q->ne[1],
        .n_group  = (int32_t) (q->ne[1] / k->ne[1]),
        .batch    = (const struct plong_batch *) op->src[3]->data,
        .table    = op->src[4] ? (const float *) op->src[4]->data : NULL,
        .queue    = queue,
    };
    memcpy(&c.params, op->op_params, sizeof(c.params));
    return c;
}

static const struct plong_phase exact_phase = { .window = PLONG_ALL };

/* Keys that the last row reads, about. */
static int64_t tile_keys(const struct plong_tile * tile, int32_t head) {
    const struct plong_phase * ph   = tile->phase;
    const int64_t              n    = (int64_t) tile->pos + tile->n_tok;
    const int64_t              read = (int64_t) ph->window + head;
    return ph->n_branches > 0 || tile->pos < ph->dense_below ? n : min_i64(n, read);
}

/* Segments lie at fixed positions, so that a row's sums are the same in any company. */
static void set_segments(struct plong_tile * tile) {
    const struct plong_phase * ph   = tile->phase;
    const int32_t              head = ph->sinks > ph->global ? ph->sinks : ph->global;
    const int64_t              keys = tile_keys(tile, head), n = (int64_t) tile->pos + tile->n_tok;
    tile->segment = SEGMENT;
    if (tile->n_tok * tile->n_h <= PLONG_FEW) {
        for (tile->segment = FEW_SEGMENT; keys > (int64_t) tile->segment * FEW_SEGMENTS;) {
            tile->segment *= 2;
        }
    }
    tile->seg0   = 0;
    tile->seg1   = (int32_t) ((n - 1) / tile->segment) + 1;
    tile->gap_at = (head + tile->segment - 1) / tile->segment;
    tile->gap    = 0;
    if (keys < n) {
        const int32_t first = (int32_t) (((int64_t) tile->pos - ph->window + 1) / tile->segment);
        tile->gap           = first > tile->gap_at ? first - tile->gap_at : 0;
        tile->seg1 -= tile->gap;
    }
}

/* Cuts one group into tiles of at most `rows` rows. */
static int64_t group_tiles(
    const struct plong_call * c, const struct plong_group * group, const struct plong_phase * phase, int32_t rows,
    struct plong_tile * tiles) {
    const int32_t n_kv    = c->n_head / c->n_group;
    const bool    dilated = phase->n_branches > 0;
    const bool    few     = !dilated && group->n * c->n_group <= PLONG_FEW;
    const int32_t most_kv = few ? PLONG_FEW_ROWS / (group->n * c->n_group) : 1;
    const int32_t most_h  = dilated && c->n_group > PLONG_CLASSES ? PLONG_CLASSES : c->n_group;
    int64_t       n       = 0;
    for (int32_t kv = 0, kvs; kv < n_kv; kv += kvs) {
        kvs = kv + most_kv < n_kv ? most_kv : n_kv - kv;
        for (int32_t h = 0, hs; h < c->n_group; h += hs) {
            hs                   = h + most_h < c->n_group ? most_h : c->n_group - h;
            const int32_t fit    = rows / hs > 1 ? rows / hs : 1;
            const int32_t cuts   = (group->n + fit - 1) / fit;
            const int32_t tokens = (group->n + cuts - 1) / cuts;
            for (int32_t i = 0; i < group->n;) {
                const int32_t pos = group->pos + i;
                int32_t       end = i + tokens < group->n ? i + tokens : group->n;
                end               = plong_phase_cut(phase, pos, group->pos + end - 1) - group->pos + 1;
                tiles[n]          = (struct plong_tile) {
                    .group = group,
                    .phase = phase,
                    .tok   = group->tok + i,
                    .pos   = pos,
                    .n_tok = end - i,
                    .head0 = kv * c->n_group + h,
                    .n_h   = hs,
                    .n_kv  = kvs,
                };
                set_segments(&tiles[n++]);
                i = end;
            }
        }
    }
    return n;
}

/* Cuts the batch into tiles; every thread could do it, one does. */
static int64_t make_tiles(const struct plong_call * c, int n_threads, struct plong_tile * tiles) {
    const struct plong_group * groups = plong_batch_groups(c->batch);
    const bool                 dense  = c->params.layer < c->batch->plan.dense_layers;
    const int32_t              least  = least_rows(c->d_k, c->d_v);
    for (int32_t rows = plong_row_limit(c->d_k, c->d_v);; rows = rows / 2 > least ? rows / 2 : least) {
        int64_t n = 0, wanted = (int64_t) TILES_PER_THREAD * n_threads;
        for (int g = 0; g < c->batch->n_groups; g++) {
            const struct plong_phase * phase = dense ? &exact_phase : &c->batch->plan.phase[groups[g].phase];
            /* only one row in `rate` uses the keys that a branch has packed: more of them in a tile, fewer tiles */
            const bool dilated = phase->n_branches > 0;
            n += group_tiles(c, &groups[g], phase, dilated ? DILATED_ROWS * rows : rows, tiles + n);
            wanted = dilated ? TILES_PER_THREAD / 4 * (int64_t) n_threads : wanted;
        }
        if (rows <= least || n_threads == 1 || n >= wanted) {
            return n;
        }
    }
}

static void empty_state(struct plong_state * s, int rows, int dv) {
    for (int r = 0; r < rows; r++) {
        s->m[r] = -INFINITY;
        s->l[r] = 0.0f;
    }
    memset(s->acc, 0, (size_t) rows * dv * sizeof(float));
}

/* Rows without any key give zeros. */
static void write_rows(const struct plong_call * c, const struct plong_tile * tile, const struct plong_state * s) {
    const int dv = plong_pad32(c->d_v), rows = plong_tile_rows(tile);
    for (int r = 0; r < rows; r++) {
        const int   kv = r / (tile->n_tok * tile->n_h), tok = tile->tok + r / tile->n_h % tile->n_tok;
        const int   head = tile->head0 + kv * c->n_group + r % tile->n_h;
        float *     out  = (float *) c->out + ((size_t) tok * c->n_head + head) * c->d_v;
        const float norm = s->l[r] == 0.0f ? 0.0f : 1.0f / s->l[r];
        for (int i = 0; i < c->d_v; i++) {
            out[i] = s->acc[(size_t) r * dv + i] * norm;
        }
    }
}

/* State of `rows` rows in a flat buffer of rows * (dv + 2) floats. */
static struct plong_state state_at(float * base, int64_t rows) {
    return (struct plong_state) { .m = base, .l = base + rows, .acc = base + 2 * rows };
}

/* Makes an item of each segment where there are too few tiles for the threads and memory for the segments' states: what
 * comes out is the same. Returns the number of items. */
static int64_t share_segments(struct plong_tile * tiles, int64_t n, int n_threads, int32_t rows, int64_t max_rows) {
    int64_t parts = 0;
    for (int64_t i = 0; i < n; i++) {
        tiles[i].part = parts;
        parts += tiles[i].seg1;
    }
    if (n_threads > 1 && n < few_tiles(n_threads) && parts * rows <= max_rows) {
        return parts;
    }
    for (int64_t i = 0; i < n; i++) { /* each segment would go through all branches anew */
        if (tiles[i].phase->n_branches > 0) {
            tiles[i].segment = WHOLE;
            tiles[i].seg1    = 1;
        }
    }
    return n;
}

struct plong_queue {
    struct ggml_threadpool *  pool; /* counts the items that were taken */
    const struct plong_tile * tiles;
    int64_t                   n_tiles, n_items; /* more items than tiles: each is a segment */
};

static bool queue_item(const struct plong_queue * q, int64_t item, struct plong_tile * tile) {
    if (item >= q->n_items) {
        return false;
    }
    if (q->n_items == q->n_tiles) {
        *tile = q->tiles[item];
        return true;
    }
    int64_t i = 0;
    while (i + 1 < q->n_tiles && q->tiles[i + 1].part <= item) {
        i++;
    }
    *tile      = q->tiles[i];
    tile->seg0 = (int32_t) (item - tile->part);
    tile->seg1 = tile->seg0 + 1;
    return true;
}

bool plong_queue_peek(const struct plong_queue * q, struct plong_tile * tile) {
    return queue_item(q, ggml_threadpool_chunk_add(q->pool, 0), tile);
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
    const struct plong_kernel * kernel = f32 ? kernel_in_use()->f32 : kernel_in_use();
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
        head->n_tiles = make_tiles(&call, params->nth, tiles);
        head->rows    = most_rows(tiles, head->n_tiles);
        head->n_items = share_segments(tiles, head->n_tiles, params->nth, head->rows, work.max_rows);
        ggml_threadpool_chunk_set(params->threadpool, 0);
    }
    ggml_barrier(params->threadpool);

    queue                       = (struct plong_queue) { params->threadpool, tiles, head->n_tiles, head->n_items };
    const bool        shared    = queue.n_items > queue.n_tiles;
    const size_t      part_size = (size_t) head->rows * (dv + 2);
    int64_t           done      = 0;
    struct plong_tile tile;
    for (int64_t item; item = ggml_threadpool_chunk_add(queue.pool, 1), queue_item(&queue, item, &tile); done++) {
        const int          rows  = plong_tile_rows(&tile);
        struct plong_state state = state_at(shared ? parts + item * part_size : (float *) mine, rows);
        empty_state(&state, rows, dv);
        kernel->tile(&call, &tile, &state, mine + work.state);
        if (!shared) {
            write_rows(&call, &tile, &state);
        }
    }
    atomic_fetch_add(&tiles_run[kernel_index(kernel)], done);

    if (shared) {
        ggml_barrier(params->threadpool);
        for (int64_t i = params->ith; i < queue.n_tiles; i += params->nth) {
            finish_tile(&call, kernel, &tiles[i], parts + tiles[i].part * part_size, part_size);
        }
    }
}
