/*
 * few.h - few rows of activations: each weight row is multiplied as it is stored, and only its sums are turned. The
 * outputs have the same bits as those of many.h: dot products are integers, and the rest is computed in the same order.
 */

#define FEW 2 /* rows */

struct few {
    float             dots[FEW][VW][PLONG_GROUPS]; /* of a weight row, by groups */
    struct row_scales by_rows;
    float             turned[PLONG_GROUPS][VW]; /* dots of a group, by weight rows */
    float             scales[PLONG_GROUPS][VW];
    float             mins[PLONG_PANEL / 32][VW];
    float             out[VW];
    uint8_t           tail[VW][TAIL];
};

/* The dot products of the groups of a weight row with those of x. */
PLONG_INLINE void dot_row(
    const enum ggml_type type, const struct kind kind, const char * row, int n, const struct plong_activations * x,
    float * dots) {
#pragma GCC unroll 16
    for (int i = 0; i < PLONG_PANEL / 4 / VW; i += kind.group / 4) {
        if (i * 4 * VW >= n) {
            break;
        }
        vi a[8];
        for (int j = 0; j < kind.group / 4; j++) {
            const vc w = codes_of(type, row, i + j), q = vc_load(x->q + 4 * VW * (i + j));
            a[j] = kind.wide ? vi_dot_wide(vi_zero(), w, q) : vi_dot(vi_zero(), w, q);
        }
        const int g   = i * 4 * VW / kind.group;
        const vi  sum = kind.group == 32 ? vi_sums_32(a) : vi_sums_16(a);
        vf_store(dots + g, vi_float(kind.mins ? sum : vi_add(sum, vi_load(x->shift + g))));
    }
}

/* Adds a panel to VW outputs of a row of activations, or starts them. */
PLONG_INLINE void add_groups(
    const struct kind kind, const struct panel * p, const struct few * s, int row, float * out) {
    const struct plong_activations * x   = activations_of(p, row);
    vf                               sum = p->index == 0 ? vf_zero() : vf_load(out);
    for (int g = 0; g < p->n / kind.group; g++) {
        sum = vf_fma(vf_mul(vf_load(s->scales[g]), vf_set1(x->scale[g])), vf_load(s->turned[g]), sum);
        if (kind.mins) {
            sum = vf_fma(vf_load(s->mins[g]), vf_set1(x->sum[g]), sum);
        }
    }
    vf_store(out, sum);
}

PLONG_INLINE void few_rows(const enum ggml_type type, const struct kind kind, const struct panel * p, struct few * s) {
    const int rows = (int) p->job->n_rows;
    for (int first = 0; first < p->job->n_weights; first += VW) {
        const int    valid = p->job->n_weights - first < VW ? p->job->n_weights - first : VW;
        const char * weights[VW];
        for (int r = 0; r < VW; r++) {
            weights[r] = row_of(p, first + r, s->tail[r]);
        }
        turn_scales(type, kind, p->n, weights, &s->by_rows, (struct turned_scales) { s->scales[0], s->mins[0], VW });
        for (int r = 0; r < valid; r++) {
            fetch_next(type, p, first + r);
            for (int m = 0; m < rows; m++) {
                dot_row(type, kind, weights[r], p->n, activations_of(p, m), s->dots[m][r]);
            }
        }
        for (int m = 0; m < rows; m++) {
            float * out = out_of(p, m) + first;
            turn(s->dots[m][0], PLONG_GROUPS, PLONG_PANEL / kind.group, s->turned[0], VW);
            if (valid == VW) {
                add_groups(kind, p, s, m, out);
            } else {
                memcpy(s->out, out, (size_t) valid * sizeof(float));
                add_groups(kind, p, s, m, s->out);
                memcpy(out, s->out, (size_t) valid * sizeof(float));
            }
        }
    }
}
