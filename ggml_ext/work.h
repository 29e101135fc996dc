/*
 * work.h - the work of a batch: what a backend executes.
 *
 * A planner (work.c, with tiles.c, ranges.c and readers.c) turns a batch and its plan into
 *
 *     tiles     query rows that are computed together, and the fixed spans in which their keys are summed
 *     ranges    of each tile: the positions of keys that some of its rows read
 *     readers   of each range: the rows that read it, and the bounds between which each of them does
 *
 * once for all layers of the same shape. The planner knows no processor: a backend states its limits in struct
 * plong_limits, and then only executes the work. Everything is int32 without pointers, so that a graph can carry it as
 * a tensor and a GPU can copy it. Tiles of plans that choose keys by content read more ranges, which each layer finds
 * when it runs (choose.h); these use the readers of the tile's first range.
 */
#ifndef PLONG_WORK_H
#define PLONG_WORK_H

#include "plan.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- input of the planner ------------------------------------------------------------------------------------- */

/* Layers of one shape share their work. */
struct plong_shape {
    int32_t d_k, d_v;
    int32_t n_head, n_head_kv;
    int32_t dense; /* 1: every key is read, whatever the plan says */
};

/* The sizes that a backend wants. */
struct plong_limits {
    int32_t max_rows;      /* query rows of a tile */
    int32_t min_rows;      /* tiles are not made smaller than this to get more of them */
    int32_t tiles;         /* how many are wanted, to keep every thread busy to the end; 0: as few as possible */
    int32_t dilated_tiles; /* the same where the plan is dilated */
    int32_t dilated_rows;  /* factor by which tiles of dilated plans have more rows */
    int32_t classes;       /* most heads of a dilated tile: each may read other keys */
    int32_t narrow;        /* a tile with up to this many rows per kv head is narrow: decode */
    int32_t narrow_rows;   /* most rows of a narrow tile, all its kv heads together */
    int32_t span;          /* keys that wide tiles sum as a whole; a multiple of 32 */
    int32_t narrow_span;   /* the same for narrow tiles, doubled while a row would have more spans than: */
    int32_t narrow_spans;
    int32_t range_rows; /* a range with more readers is listed once for each part of them */
};

/* ---- the work ------------------------------------------------------------------------------------------------- */

/* n_tok neighbouring tokens of one sequence and phase, and n_h consecutive heads of each of n_kv kv heads (n_kv > 1 only
 * where all of them read the same keys; then n_h is the whole group). Rows are in the order [n_kv][n_tok][n_h]. */
struct plong_tile {
    int32_t stream;           /* index into dim 3 of K and V */
    int32_t run_beg, run_end; /* the sequence's cells: runs of the batch */
    int32_t phase;            /* of the batch's plan, or PLONG_PHASE_EXACT */
    int32_t tok;              /* first token of the ubatch */
    int32_t pos;              /* its position */
    int32_t n_tok;
    int32_t step; /* between the positions of its tokens */
    int32_t head; /* first query head */
    int32_t n_h;
    int32_t n_kv;
    int32_t range_beg, range_end;
    int32_t span;         /* keys at positions [i * span, (i + 1) * span) are summed as a whole */
    int32_t gap_beg, gap; /* from span gap_beg on, `gap` of them hold no key of the tile and are not numbered */
    int32_t n_spans;
    int32_t part;                /* number of spans in the tiles before this one */
    int32_t choice, choice_room; /* its ranges among those of the choices: the first, and the most; room 0: none */
    int32_t option;              /* enum plong_option */
};

/* A token whose kv heads verify their choices may turn out to read every key in many of them. That is faster for all kv heads
 * together: then tiles that do so take the place of those that choose (plong_tile_idle() in choose.h). */
enum plong_option {
    PLONG_OPTION_NONE   = 0, /* the tile is computed */
    PLONG_OPTION_CHOICE = 1, /* unless most keys are to be read */
    PLONG_OPTION_WHOLE  = 2, /* only then */
};

/* Keys of a tile, and the rows that read them. */
struct plong_tile_range {
    struct plong_range keys;
    int32_t            readers; /* index */
    /* keys before it are read by all readers, others by those whose bounds include them */
    int32_t sinks_end;
    float   log2_weight; /* log_w / ln 2 of every key */
};

/* Rows that read a range. Several ranges of a tile may have the same ones. */
struct plong_readers {
    int32_t row_beg, row_end;
    int32_t count_beg, count_end;
    int32_t branch; /* dilated branch, or -1: set parts */
    int32_t checks; /* 1: keys of earlier branches must be left out one by one: plong_branch_weight() */
};

/* Row `row` of the tile reads key t of a range when lo <= t <= hi, or when t <= hi and t < sinks_end. */
struct plong_row {
    int32_t row;
    int32_t pos; /* of its query */
    int32_t lo, hi;
    int32_t count; /* which of its readers' counts it adds; -1: all its keys count once */
};

/* For nested branches whose keys count as often as they are read: what the branches after the readers' own, up to
 * `top`, add for keys at positions t with t % rate == place % rate, in rows that take part in all of them. */
struct plong_count {
    int32_t top;
    int32_t place;
};

#define PLONG_MAX_CLASSES 8                                        /* the largest plong_limits.classes */
#define PLONG_MAX_COUNTS  (PLONG_MAX_CLASSES * PLONG_MAX_BRANCHES) /* the most counts of one plong_readers */

/* Followed by its tiles, ranges, readers, rows and counts. */
struct plong_work {
    int32_t            n_tiles, n_ranges, n_readers, n_rows, n_counts;
    int32_t            tile_rows; /* of the largest tile */
    int32_t            n_parts;   /* spans of all tiles */
    int32_t            n_chosen;  /* the most ranges of all choices together */
    int32_t            n_options; /* tokens of the ubatch if tiles are options, else 0 */
    struct plong_shape shape;
};

/* Plans the work of a batch. NULL when out of memory. Free the result with plong_work_free(). */
PLONG_API struct plong_work * plong_work_new(
    const struct plong_batch * batch, const struct plong_shape * shape, const struct plong_limits * limits);
PLONG_API void plong_work_free(struct plong_work * work);

/* The size of the work in int32 words. */
PLONG_API size_t plong_work_words(const struct plong_work * work);

/* The size of the choices of the work in int32 words; 0 if it chooses no keys. */
PLONG_API size_t plong_work_choice_words(const struct plong_work * work);

PLONG_API const struct plong_tile *       plong_work_tiles(const struct plong_work * work);
PLONG_API const struct plong_tile_range * plong_work_ranges(const struct plong_work * work);
PLONG_API const struct plong_readers *    plong_work_readers(const struct plong_work * work);
PLONG_API const struct plong_row *        plong_work_rows(const struct plong_work * work);
PLONG_API const struct plong_count *      plong_work_counts(const struct plong_work * work);

/* Writes the work as text, a line for each tile, range and readers, and returns the length of the whole text, as
 * snprintf does. */
PLONG_API size_t plong_work_print(const struct plong_work * work, char * text, size_t size);

static inline int32_t plong_tile_rows(const struct plong_tile * t) { return t->n_kv * t->n_tok * t->n_h; }

/* Position of the tile's i-th token. */
static inline int32_t plong_tile_pos(const struct plong_tile * t, int32_t i) { return t->pos + i * t->step; }

/* Position of its last one. */
static inline int32_t plong_tile_last(const struct plong_tile * t) { return plong_tile_pos(t, t->n_tok - 1); }

/* Position at which a span of the tile begins. */
static inline int64_t plong_span_begin(const struct plong_tile * t, int32_t i) {
    return (int64_t) (i < t->gap_beg ? i : i + t->gap) * t->span;
}

/* Query head of a row of the tile. */
static inline int32_t plong_row_head(const struct plong_work * work, const struct plong_tile * t, int32_t row) {
    const int32_t n_group = work->shape.n_head / work->shape.n_head_kv;
    return t->head + row / (t->n_tok * t->n_h) * n_group + row % t->n_h;
}

/* Token of the ubatch that a row of the tile belongs to. */
static inline int32_t plong_row_tok(const struct plong_tile * t, int32_t row) {
    return t->tok + row / t->n_h % t->n_tok;
}

/* A query head's number in dilated attention. */
static inline int32_t plong_shape_number(const struct plong_shape * s, int32_t head) {
    return plong_head_number(head, s->n_head, s->n_head_kv);
}

/* ---- executing it --------------------------------------------------------------------------------------------- */

/* One op call: tensors as pointers and byte strides. Lives as long as the call. */
struct plong_call {
    const char *               q;
    const char *               k;
    const char *               v;
    char *                     out;           /* F32 [d_v, n_head, n_tokens], contiguous */
    size_t                     q_head, q_tok; /* bytes */
    size_t                     k_head, k_cell, k_stream;
    size_t                     v_head, v_cell, v_stream;
    int32_t                    k_type, v_type;            /* enum ggml_type */
    int32_t                    d_k, d_v, n_head, n_group; /* n_group: query heads per kv head */
    struct plong_attn_params   params;
    const struct plong_batch * batch;
    const struct plong_work *  work;
    const float *              table;       /* rotation table, NULL when the position map is absolute */
    const float *              sink_logits; /* [n_head], or NULL */
    char *                     index;       /* keys in 4 bits, by page; NULL outside plong_choose() */
    size_t                     index_head, index_page, index_stream;
    int64_t                    n_cells; /* of a stream of K */
    void *                     choices; /* of keys; NULL where the work chooses none */
    const float *              exact;   /* [n_checks][n_head][d_v] results of the batch's checks, or NULL */
};

PLONG_API struct plong_call plong_call_of(const struct ggml_tensor * op);

/* The same for ggml_long_choose(): there is no V, and the result are the choices. */
PLONG_API struct plong_call plong_choosing_call_of(const struct ggml_tensor * op);

/* Whether each value is the first dims of its key (multi-head latent attention). */
static inline bool plong_v_in_k(const struct plong_call * c) {
    return c->v == c->k && c->v_type == c->k_type && c->v_cell == c->k_cell && c->v_head == c->k_head &&
           c->v_stream == c->k_stream && c->d_v <= c->d_k;
}

/* Writes zeros for tokens that belong to no group. Other tokens must not be touched: the result may be in the same
 * place as the queries, which tiles read before they write. */
PLONG_API void plong_zero_strays(const struct plong_call * call);

/* The slope of a head: what its logits lose per position of distance (ALiBi, arXiv 2108.12409), a geometric series over
 * the heads. If their number is not a power of two, every other value of the next series is appended. 0: no ALiBi. */
PLONG_API float plong_alibi_slope(float max_bias, int32_t n_head, int32_t head);

/* What a head's attention sink adds to the denominator of a row whose maximum is m, in base 2 as struct plong_softmax
 * has them. 0 without sinks. */
PLONG_API float plong_sink_weight(const struct plong_call * call, int32_t head, float m);

/* Online softmax of rows over some keys, in base 2: with logits x * log2(e), l = sum of 2^(x - m), acc = sum of
 * 2^(x - m) * v. m is no more than a backend's margin below the largest logit. Empty: m = -INFINITY, l = 0, acc
 * anything. */
struct plong_softmax {
    float * m;   /* [rows] */
    float * l;   /* [rows] */
    float * acc; /* [rows][d_v, padded as the backend wants it] */
};

#ifdef __cplusplus
}
#endif

#endif
