/* weigh_bounds.h - the largest logits that the keys of pages can have, by the bounds of their dims. */
#ifndef PLONG_CPU_BODY_WEIGH_BOUNDS_H
#define PLONG_CPU_BODY_WEIGH_BOUNDS_H

#define WEIGH_FAR 8 /* pages ahead whose bounds are prefetched */

/* Up to INDEX_PAGES pages of one zone: logits [rows][stride]. */
static void weigh_bounds_of(const struct weighing * x, const struct visit * v, int n, float * logits, int32_t stride) {
    const struct asked *     a = &x->asked;
    const struct weigh_mem * m = &x->mem;
    struct plong_index_page  pages[INDEX_PAGES];
    float                    lo[INDEX_PAGES], step[INDEX_PAGES], top[INDEX_PAGES];
    for (int i = 0; i < INDEX_PAGES; i++) {
        pages[i] = plong_page_at(&x->index, v[i < n ? i : 0].page);
        lo[i]    = pages[i].units[0] * (1.0f / PLONG_LO_MOST);
        step[i]  = pages[i].units[1] * (15.0f / PLONG_LO_MOST);
    }
    index_bounds(weigh_rows(x, v->zone), pages, a->dims, (struct index_bounds) { m->starts, m->above });
    for (int r = 0; r < a->rows; r++, logits += stride) {
        const int32_t *start = m->starts + r * INDEX_PAGES, *above = m->above + r * INDEX_PAGES;
        const float    unit = m->unit[v->zone * a->rows + r];
        for (int i = 0; i < INDEX_PAGES; i++) {
            top[i] = unit * ((float) start[i] * lo[i] + (float) above[i] * step[i]);
        }
        for (int i = 0; i < n && weigh_bends(x->call); i++) {
            top[i] = weigh_logit(x, r, x->pieces[v[i].beg].pos, top[i]);
        }
        memcpy(logits, top, (size_t) n * sizeof(float));
    }
}

/* Logits [rows][n, padded to 16] of n visits. */
static void weigh_bounds(const struct weighing * x, int32_t n) {
    const struct visit * v = x->mem.visits;
    for (int32_t i = 0, next; i < n; i = next) {
        for (next = i; next < n && next < i + INDEX_PAGES && v[next].zone == v[i].zone; next++) {
            weigh_fetch(x, v + (next + WEIGH_FAR < n ? next + WEIGH_FAR : n - 1));
        }
        weigh_bounds_of(x, v + i, next - i, x->mem.logits + i, (n + 15) & ~15);
    }
}

#endif
