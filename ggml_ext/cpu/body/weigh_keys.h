/* weigh_keys.h - the logits of pieces by all of their keys. */
#ifndef PLONG_CPU_BODY_WEIGH_KEYS_H
#define PLONG_CPU_BODY_WEIGH_KEYS_H

/* The largest of n sums. */
PLONG_INLINE int32_t weigh_most(const int32_t * sums, int n) {
    int32_t most = sums[0];
    for (int j = 1; j < n; j++) {
        most = sums[j] > most ? sums[j] : most;
    }
    return most;
}

/* The sum of 2^(scale * (sum - most)) over n sums, at most a page. */
PLONG_INLINE float weigh_sum(const int32_t * sums, int n, int32_t most, float scale) {
    float x[PLONG_PAGE + VW];
    vf    total = vf_zero();
    for (int j = 0; j < n; j++) {
        x[j] = (float) (sums[j] - most) * scale;
    }
    vf_store(x + n, vf_set1(-INFINITY));
    for (int j = 0; j < n; j += VW) {
        total = vf_add(total, vf_exp2(vf_load(x + j)));
    }
    return vf_sum(total);
}

/* The same over each 16 of a page: out [4]. */
PLONG_INLINE void weigh_sums(const int32_t * sums, int32_t most, float scale, float * out) {
    float x[PLONG_PAGE];
    vf    total[PLONG_PAGE / 16];
    for (int j = 0; j < PLONG_PAGE; j++) {
        x[j] = (float) (sums[j] - most) * scale;
    }
    for (int i = 0; i < PLONG_PAGE / 16; i++) {
        total[i] = vf_exp2(vf_load(x + 16 * i));
        for (int j = VW; j < 16; j += VW) {
            total[i] = vf_add(total[i], vf_exp2(vf_load(x + 16 * i + j)));
        }
    }
    vf_sum4(total[0], total[1], total[2], total[3], out);
}

/* Logits and parts of a row for the pieces of a page, from the sums of its keys. */
PLONG_INLINE void weigh_row(const struct weighing * x, const struct visit * v, int r, float * logits, float * parts) {
    const struct weigh_mem * m     = &x->mem;
    const int32_t *          sums  = m->sums + r * PLONG_PAGE;
    const float              start = m->start[r], scale = m->scale[r];
    float                    four[PLONG_PAGE / 16];
    if (v->whole) {
        weigh_sums(sums, m->tops[r], scale, four);
    }
    for (int32_t j = v->beg; j < v->end; j++) {
        const int beg = x->pieces[j].cell % PLONG_PAGE, n = x->pieces[j].n;
        int32_t   most = m->tops[r];
        float     sum  = 0.0f;
        if (v->whole) {
            for (int i = 0; i < n / 16; i++) {
                sum += four[beg / 16 + i];
            }
        } else {
            most = weigh_most(sums + beg, n);
            sum  = weigh_sum(sums + beg, n, most, scale);
        }
        logits[j - v->beg] = start + scale * (float) most;
        parts[j - v->beg]  = sum;
        if (weigh_bends(x->call)) {
            logits[j - v->beg] = weigh_logit(x, r, x->pieces[j].pos, logits[j - v->beg]);
        }
    }
}

/* Weighs the pieces of n visits by their keys: logits and parts [rows][pieces, padded to 16], and which pieces those are
 * in order [pieces]. Returns their number. */
static int32_t weigh_keys(const struct weighing * x, int32_t n) {
    const struct asked *     a      = &x->asked;
    const struct weigh_mem * m      = &x->mem;
    int32_t                  pieces = 0, at = 0;
    for (int32_t i = 0; i < n; i++) {
        for (int32_t j = m->visits[i].beg; j < m->visits[i].end; j++) {
            m->order[pieces++] = j;
        }
    }
    for (int32_t i = 0; i < n; i++) {
        const struct visit *          v     = &m->visits[i];
        const struct visit *          ahead = &m->visits[i + 2 < n ? i + 2 : n - 1];
        const struct plong_index_page page  = plong_page_at(&x->index, v->page);
        const float *                 unit  = m->unit + v->zone * a->rows;
        weigh_fetch(x, ahead);
        index_digits(weigh_rows(x, v->zone), &page, a->dims, m->digits, m->starts);
        for (int r = 0; r < a->rows; r++) {
            m->scale[r] = unit[r] * page.units[1] * (65536.0f / 32767);
            m->start[r] = unit[r] * page.units[0] * (1.0f / PLONG_LO_MOST) * (float) m->starts[r];
        }
        index_scores(
            page.nibbles, plong_page_at(&x->index, ahead->page).nibbles, a->quads,
            (struct index_rows) { m->digits, a->stride, a->rows }, (struct index_sums) { m->sums, m->tops });
        for (int r = 0; r < a->rows; r++) {
            const size_t to = (size_t) r * ((pieces + 15) & ~15) + at;
            weigh_row(x, v, r, m->logits + to, m->parts + to);
        }
        at += v->end - v->beg;
    }
    return pieces;
}

#endif
