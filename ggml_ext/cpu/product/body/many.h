/* many.h - many rows of activations: the weights are turned, so that a lane is a weight row, and multiplied with all. */

#define QUADS (PLONG_PANEL / 4)

struct many {
    uint8_t           codes[VECTORS][QUADS][4 * VW];
    float             scales[PLONG_GROUPS][TILE];
    float             mins[PLONG_PANEL / 32][TILE];
    struct row_scales by_rows;
    float             out[ROWS][TILE]; /* of a tile that has fewer rows */
    uint8_t           tail[VW][TAIL];
};

PLONG_INLINE void unpack_tile(
    const enum ggml_type type, const struct kind kind, const struct panel * p, struct many * s) {
    for (int v = 0; v < VECTORS; v++) {
        const char * rows[VW];
        const char * next = p->next + (size_t) (v * VW) * p->job->row_bytes; /* fetched piece by piece */
        const int    step = panel_bytes(type) / (QUADS / VW);
        for (int r = 0; r < VW; r++) {
            rows[r] = row_of(p, v * VW + r, s->tail[r]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < QUADS / VW; i++) {
            if (i * 4 * VW >= p->n) {
                break;
            }
            vf w[VW];
            for (int r = 0; r < VW; r++) {
                const vc codes = codes_of(type, rows[r], i);
                __builtin_prefetch(next + (size_t) r * p->job->row_bytes + (size_t) (i * step), 0, 0);
                memcpy(&w[r], &codes, sizeof(codes));
            }
            vf_transpose(w);
            for (int j = 0; j < VW; j++) {
                memcpy(s->codes[v][i * VW + j], &w[j], sizeof(w[j]));
            }
        }
        turn_scales(
            type, kind, p->n, rows, &s->by_rows,
            (struct turned_scales) { s->scales[0] + v * VW, s->mins[0] + v * VW, TILE });
    }
}

/* Adds the n columns of a panel to the outputs [rows][TILE], or starts them. */
PLONG_INLINE void multiply(
    const struct many * t, int n, const struct plong_activations * x, float * const * out, bool starts, const int rows,
    const struct kind kind) {
    vf sum[ROWS][VECTORS];
    for (int r = 0; r < rows; r++) {
        for (int v = 0; v < VECTORS; v++) {
            sum[r][v] = starts ? vf_zero() : vf_load(out[r] + v * VW);
        }
    }
    for (int g = 0; g < n / kind.group; g++) {
        vi dot[ROWS][VECTORS];
        for (int r = 0; r < rows; r++) {
            for (int v = 0; v < VECTORS; v++) {
                dot[r][v] = vi_set1(kind.mins ? 0 : x[r].shift[g]);
            }
        }
#pragma GCC unroll 8
        for (int k = 0; k < kind.group / 4; k++) {
            const int at = g * kind.group / 4 + k;
            vc        w[VECTORS];
            for (int v = 0; v < VECTORS; v++) {
                w[v] = vc_load(t->codes[v][at]);
            }
            for (int r = 0; r < rows; r++) {
                int32_t q;
                memcpy(&q, x[r].q + 4 * at, sizeof(q));
                for (int v = 0; v < VECTORS; v++) {
                    dot[r][v] =
                        kind.wide ? vi_dot_wide(dot[r][v], w[v], vi_set1(q)) : vi_dot(dot[r][v], w[v], vi_set1(q));
                }
            }
        }
        for (int v = 0; v < VECTORS; v++) {
            const vf scale = vf_load(t->scales[g] + v * VW);
            for (int r = 0; r < rows; r++) {
                const vf by = vf_mul(scale, vf_set1(x[r].scale[g]));
                sum[r][v]   = vf_fma(by, vi_float(dot[r][v]), sum[r][v]);
            }
            if (kind.mins) {
                const vf min = vf_load(t->mins[g] + v * VW);
                for (int r = 0; r < rows; r++) {
                    sum[r][v] = vf_fma(min, vf_set1(x[r].sum[g]), sum[r][v]);
                }
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        for (int v = 0; v < VECTORS; v++) {
            vf_store(out[r] + v * VW, sum[r][v]);
        }
    }
}

typedef void multiply_fn(
    const struct many * t, int n, const struct plong_activations * x, float * const * out, bool starts);

#define MULTIPLY(rows, name, group, mins, wide)                                                               \
    static void multiply_##name##_##rows(                                                                     \
        const struct many * t, int n, const struct plong_activations * x, float * const * out, bool starts) { \
        multiply(t, n, x, out, starts, rows, (struct kind) { group, mins, wide });                            \
    }
#define MULTIPLY_ROWS(rows)                 \
    MULTIPLY(rows, plain, 32, false, false) \
    MULTIPLY(rows, mins, 32, true, false)   \
    MULTIPLY(rows, fine, 16, false, false)  \
    MULTIPLY(rows, wide, 32, false, true)
#define ROWS_OF(rows) { multiply_plain_##rows, multiply_mins_##rows, multiply_fine_##rows, multiply_wide_##rows }

MULTIPLY_ROWS(1)
MULTIPLY_ROWS(2)
MULTIPLY_ROWS(3)
#if ROWS > 3
MULTIPLY_ROWS(4)
#endif
#if ROWS > 4
MULTIPLY_ROWS(5)
MULTIPLY_ROWS(6)
#endif
static multiply_fn * const multiplies[ROWS][4] = {
    ROWS_OF(1), ROWS_OF(2), ROWS_OF(3),
#if ROWS > 3
    ROWS_OF(4),
#endif
#if ROWS > 4
    ROWS_OF(5), ROWS_OF(6),
#endif
};

/* Outputs of `rows` rows. */
static void multiply_rows(const struct panel * p, int64_t row, int rows, struct many * s) {
    const struct plong_format * format    = p->job->format;
    const int                   code      = format->wide ? 3 : format->group == 16 ? 2 : format->mins;
    const bool                  starts    = p->index == 0;
    float *                     out[ROWS] = { NULL };
    begin_outputs(p, row, rows, starts, s->out, out);
    multiplies[rows - 1][code](s, p->n, activations_of(p, row), out, starts);
    end_outputs(p, row, rows, out);
}

PLONG_INLINE void many_rows(
    const enum ggml_type type, const struct kind kind, const struct panel * p, struct many * s) {
    unpack_tile(type, kind, p, s);
    const int64_t n = p->job->n_rows;
    for (int64_t row = 0; row < n; row += ROWS) {
        multiply_rows(p, row, n - row < ROWS ? (int) (n - row) : ROWS, s);
    }
}
