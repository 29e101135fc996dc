/* sample.c - draws keys, by random numbers that are a hash of their place. */
#include "sample.h"

int64_t plong_rest_keys(const struct plong_rest * r) {
    int64_t n = 0;
    for (int32_t i = 0, c = 0; i < r->n; i++) {
        const bool chosen = c < r->n_chosen && r->chosen[c] == i;
        c += chosen;
        n += chosen ? 0 : r->pieces[i].n;
    }
    return n;
}

uint64_t plong_mix(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

uint64_t plong_sample_place(const struct plong_call * c, const struct plong_tile * tile) {
    const struct plong_phase * ph      = plong_batch_phase(c->batch, tile->phase);
    const int32_t              parts[] = { plong_phase_seed(ph), c->params.layer, tile->head / c->n_group,
                                           tile->pos / plong_phase_rows(ph) };
    uint64_t                   place   = 0;
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        place = plong_mix(place ^ (uint32_t) parts[i]);
    }
    return place;
}

struct plong_strata plong_strata_of(const struct plong_rest * rest, int32_t n, uint64_t place) {
    return (struct plong_strata) { .rest = rest, .place = place, .n = n };
}

bool plong_strata_next(struct plong_strata * s) {
    const struct plong_rest * r = s->rest;
    if (s->next >= s->n) {
        return false;
    }
    s->size             = r->n_keys / s->n + (s->next < r->n_keys % s->n);
    const uint64_t part = (plong_mix(s->place + (uint64_t) s->next) >> 32) * (uint64_t) s->size >> 32;
    const int64_t  key  = s->beg + (int64_t) part;
    for (;; s->piece++) {
        if (s->chosen < r->n_chosen && r->chosen[s->chosen] == s->piece) {
            s->chosen++;
        } else if (key < s->before + r->pieces[s->piece].n) {
            break;
        } else {
            s->before += r->pieces[s->piece].n;
        }
    }
    s->pos  = r->pieces[s->piece].pos + (int32_t) (key - s->before);
    s->cell = r->pieces[s->piece].cell + (int32_t) (key - s->before);
    s->beg += s->size;
    s->next++;
    return true;
}
