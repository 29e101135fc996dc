/* panel.h - a panel of a tile, and what both ways to multiply it share. */

#define VECTORS 2              /* of weight rows in a tile */
#define TILE    (VECTORS * VW) /* weight rows */

/* What the code for a type depends on, known when it is compiled. */
struct kind {
    int  group; /* columns that share a scale */
    bool mins, wide;
};

struct panel {
    const struct plong_tile_product * job;
    const char *                      weights; /* of the first row */
    const char *                      next;    /* what is read after it */
    size_t                            bytes;   /* of a row */
    int64_t                           index;
    int                               n; /* columns */
};

static struct panel panel_of(const struct plong_tile_product * job, int64_t column, int n) {
    const enum ggml_type type = job->format->type;
    const char *         at   = job->weights + ggml_row_size(type, column);
    const size_t         size = ggml_row_size(type, n);
    const bool           last = column + n >= job->columns;
    return (struct panel) { job, at, last ? job->next : at + size, size, column / PLONG_PANEL, n };
}

/* Bytes of a row's panel. */
PLONG_INLINE int panel_bytes(const enum ggml_type type) {
    switch (type) {
        case GGML_TYPE_Q8_0: return PLONG_PANEL / 32 * (int) sizeof(block_q8_0);
        case GGML_TYPE_Q4_0: return PLONG_PANEL / 32 * (int) sizeof(block_q4_0);
        case GGML_TYPE_Q4_1: return PLONG_PANEL / 32 * (int) sizeof(block_q4_1);
        case GGML_TYPE_Q5_0: return PLONG_PANEL / 32 * (int) sizeof(block_q5_0);
        case GGML_TYPE_Q5_1: return PLONG_PANEL / 32 * (int) sizeof(block_q5_1);
        case GGML_TYPE_IQ4_NL: return PLONG_PANEL / 32 * (int) sizeof(block_iq4_nl);
        case GGML_TYPE_MXFP4: return PLONG_PANEL / 32 * (int) sizeof(block_mxfp4);
        case GGML_TYPE_Q4_K: return PLONG_PANEL / 256 * (int) sizeof(block_q4_K);
        case GGML_TYPE_Q5_K: return PLONG_PANEL / 256 * (int) sizeof(block_q5_K);
        default: return PLONG_PANEL / 256 * (int) sizeof(block_q6_K);
    }
}

/* Weights are read once, in pieces that are too short for the processor's own prefetchers. */
PLONG_INLINE void fetch_next(const enum ggml_type type, const struct panel * p, int row) {
    const char * from = p->next + (size_t) row * p->job->row_bytes;
#pragma GCC unroll 10
    for (int i = 0; i < panel_bytes(type); i += 64) {
        __builtin_prefetch(from + i, 0, 0);
    }
    __builtin_prefetch(from + panel_bytes(type) - 1, 0, 0);
}

#define TAIL 640 /* bytes of a panel, and more */

/* Weights of a row; past the last one, the last one again. Less than a panel is copied to `tail`, since whole ones are read. */
PLONG_INLINE const char * row_of(const struct panel * p, int row, uint8_t * tail) {
    const int    last = p->job->n_weights - 1;
    const char * at   = p->weights + (size_t) (row < last ? row : last) * p->job->row_bytes;
    if (p->n == PLONG_PANEL) {
        return at;
    }
    memcpy(tail, at, p->bytes);
    memset(tail + p->bytes, 0, TAIL - p->bytes);
    return (const char *) tail;
}

/* Bytes 4 * VW * i and on of a row's codes. */
PLONG_INLINE vc codes_of(const enum ggml_type type, const char * row, const int i) {
#ifdef WHOLE_CODES
    if (has_whole_codes(type)) {
        return whole_codes(type, row, i);
    }
#endif
    b32 b[VW / 8];
    for (int j = 0; j < VW / 8; j++) {
        b[j] = unpack_codes(type, row, i * (VW / 8) + j);
    }
    return vc_codes(b);
}

/* Turns [VW][from, n of them] into [n][VW]. */
PLONG_INLINE void turn(const float * from, int stride, int n, float * to, int to_stride) {
    for (int i = 0; i < n; i += VW) {
        vf r[VW];
        for (int j = 0; j < VW; j++) {
            r[j] = vf_load(from + (size_t) j * stride + i);
        }
        vf_transpose(r);
        for (int j = 0; j < VW; j++) {
            vf_store(to + (size_t) (i + j) * to_stride, r[j]);
        }
    }
}

/* Scales and mins as rows have them. */
struct row_scales {
    float scales[VW][PLONG_GROUPS];
    float mins[VW][PLONG_PANEL / 32];
};

/* Where those of VW rows go, turned: [groups][VW], a group `stride` after the one before. */
struct turned_scales {
    float *scales, *mins;
    int    stride;
};

PLONG_INLINE void turn_scales(
    const enum ggml_type type, const struct kind kind, int n, const char * const * rows, struct row_scales * s,
    struct turned_scales to) {
#ifdef WHOLE_SCALES
    if (has_whole_scales(type)) {
        whole_scales(type, n, rows, to.scales, to.mins, to.stride);
        return;
    }
#endif
    for (int r = 0; r < VW; r++) {
        unpack_scales(type, rows[r], n, s->scales[r], s->mins[r]);
    }
    turn(s->scales[0], PLONG_GROUPS, PLONG_PANEL / kind.group, to.scales, to.stride);
    if (kind.mins) {
        turn(s->mins[0], PLONG_PANEL / 32, PLONG_PANEL / 32, to.mins, to.stride);
    }
}

static inline float * out_of(const struct panel * p, int64_t row) { return p->job->rows[row].out + p->job->first; }

static inline const void * activations_of(const struct panel * p, int64_t row) {
    return (const char *) p->job->rows[row].x + (size_t) p->index * p->job->stride;
}

/* Where a kernel writes the outputs of some rows: where they belong, or where a tile has fewer weights than TILE, in `spare`
 * [rows][TILE], with what is there already unless this starts. end_outputs() then puts them where they belong. */
static void begin_outputs(
    const struct panel * p, int64_t row, int rows, bool starts, float (*spare)[TILE], float ** out) {
    const int n = p->job->n_weights;
    for (int r = 0; r < rows; r++) {
        out[r] = n < TILE ? spare[r] : out_of(p, row + r);
        if (n < TILE && !starts) {
            memcpy(out[r], out_of(p, row + r), (size_t) n * sizeof(float));
        }
    }
}

static void end_outputs(const struct panel * p, int64_t row, int rows, float * const * out) {
    const int n = p->job->n_weights;
    for (int r = 0; r < rows && n < TILE; r++) {
        memcpy(out_of(p, row + r), out[r], (size_t) n * sizeof(float));
    }
}
