/* floats.h - float32 weights: turned as in many.h, for any number of rows of activations. */

#define PIECE 128 /* columns that are turned at once, so that they stay in a core's first cache */

struct floats {
    float weights[PIECE][TILE];
    float out[FLOAT_ROWS][TILE]; /* of a tile that has fewer rows */
};

/* VW weights of a row, n of them and zeros. */
PLONG_INLINE vf load_weights(const float * from, int n) {
    float tail[VW] = { 0 };
    __builtin_prefetch(from + 8 * VW, 0, 2);
    if (n < VW) {
        memcpy(tail, from, (size_t) n * sizeof(float));
        from = tail;
    }
    return vf_load(from);
}

/* Turns n columns of a tile. */
PLONG_INLINE void turn_weights(const struct plong_tile_product * job, int64_t column, int n, struct floats * s) {
    for (int v = 0; v < VECTORS; v++) {
        const float * rows[VW];
        for (int r = 0; r < VW; r++) {
            const int row = v * VW + r < job->n_weights ? v * VW + r : job->n_weights - 1;
            rows[r]       = (const float *) (const void *) (job->weights + (size_t) row * job->row_bytes) + column;
        }
        for (int i = 0; i < n; i += VW) {
            vf w[VW];
            for (int r = 0; r < VW; r++) {
                w[r] = load_weights(rows[r] + i, n - i);
            }
            vf_transpose(w);
            for (int j = 0; j < VW; j++) {
                vf_store(s->weights[i + j] + v * VW, w[j]);
            }
        }
    }
}

/* Adds n columns of activations, in rows PLONG_PANEL apart, to the outputs [rows][TILE], or starts them. */
PLONG_INLINE void multiply_floats(
    const struct floats * s, int n, const float * x, float * const * out, bool starts, const int rows) {
    vf sum[FLOAT_ROWS][VECTORS];
    for (int r = 0; r < rows; r++) {
        for (int v = 0; v < VECTORS; v++) {
            sum[r][v] = starts ? vf_zero() : vf_load(out[r] + v * VW);
        }
    }
    for (int k = 0; k < n; k++) {
        vf w[VECTORS];
        for (int v = 0; v < VECTORS; v++) {
            w[v] = vf_load(s->weights[k] + v * VW);
        }
        for (int r = 0; r < rows; r++) {
            const vf y = vf_set1(x[(size_t) r * PLONG_PANEL + k]);
            for (int v = 0; v < VECTORS; v++) {
                sum[r][v] = vf_fma(w[v], y, sum[r][v]);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        for (int v = 0; v < VECTORS; v++) {
            vf_store(out[r] + v * VW, sum[r][v]);
        }
    }
}

/* Outputs of `rows` rows, FLOAT_ROWS or fewer, from n columns of a panel that begin at `at`. */
static void multiply_float_rows(const struct panel * p, int at, int n, int64_t row, int rows, struct floats * s) {
    const bool    starts          = p->index == 0 && at == 0;
    const float * x               = (const float *) activations_of(p, row) + at;
    float *       out[FLOAT_ROWS] = { NULL };
    begin_outputs(p, row, rows, starts, s->out, out);
    if (rows == FLOAT_ROWS) {
        multiply_floats(s, n, x, out, starts, FLOAT_ROWS);
    } else {
        int r = 0;
        for (; r + 4 <= rows; r += 4) {
            multiply_floats(s, n, x + (size_t) r * PLONG_PANEL, out + r, starts, 4);
        }
        for (; r < rows; r++) {
            multiply_floats(s, n, x + (size_t) r * PLONG_PANEL, out + r, starts, 1);
        }
    }
    end_outputs(p, row, rows, out);
}

PLONG_INLINE void float_rows(const struct panel * p, struct floats * s) {
    for (int at = 0; at < p->n; at += PIECE) {
        const int n = p->n - at < PIECE ? p->n - at : PIECE;
        turn_weights(p->job, p->index * PLONG_PANEL + at, n, s);
        for (int64_t row = 0; row < p->job->n_rows; row += FLOAT_ROWS) {
            const int64_t rest = p->job->n_rows - row;
            multiply_float_rows(p, at, n, row, rest < FLOAT_ROWS ? (int) rest : FLOAT_ROWS, s);
        }
    }
}
