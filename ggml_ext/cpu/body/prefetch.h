/* prefetch.h - prefetches the keys and values that a narrow job (decode) reads next. */
#ifndef PLONG_CPU_BODY_PREFETCH_H
#define PLONG_CPU_BODY_PREFETCH_H

#include "cpu/kernel.h"

#define FLAT_PAGES 8 /* pages of 4 KiB, prefetched in rotation */

/*
 * The cells of the next block, prefetched while this one is computed. Intel's cores have few requests of their own in
 * flight, but the L2 prefetcher runs ahead in each page that it sees growing, so some pages of 4 KiB are prefetched in
 * rotation. AMD's follows a single stream, but further ahead (plong_one_stream()).
 */
struct prefetch_queue {
    bool   one_stream;
    int    n_heads;
    int    credit; /* bytes of heads still to be prefetched, times n_heads */
    size_t stride; /* from cell to cell */
    /* For cells without gaps between them: 256 bytes at a time, in order or in rotation over FLAT_PAGES */
    const char * page; /* the first; NULL for others */
    const char * from; /* of one stream: the next ones */
    const char * until;
    uint32_t     n_units, next;
    /* For others: `pages` times `in_page` cells in rotation */
    const int32_t * cell; /* [n] */
    int             n;
    const char *    base;
    int             unit;            /* lines of 64 bytes that are prefetched together */
    int             units;           /* in a cell, all heads together */
    int             in_page;         /* cells */
    int             pages;           /* prefetched in rotation */
    int             group, k, at, p; /* next: that unit of cell group + p * in_page + k */
};

/* head: bytes from head to head, or of a row if there is only one head */
static inline struct prefetch_queue prefetch_queue(
    const int32_t * cell, int n, int n_heads, const char * base, size_t stride, size_t head, bool one_stream) {
    const int             lines = (int) ((head * (size_t) n_heads + 63) / 64), units = (lines + 3) / 4;
    const size_t          step = n > 1 && cell[1] > cell[0] ? (size_t) (cell[1] - cell[0]) * stride : stride;
    struct prefetch_queue a    = {
        .one_stream = one_stream,
        .n_heads    = n_heads,
        .stride     = stride,
        .cell       = cell,
        .n          = n,
        .base       = base,
        .unit       = (lines + units - 1) / units,
        .units      = units,
        .in_page    = step > 0 && step < 4096 ? (int) (4096 / step) : 1,
        .pages      = lines > 24 ? 8 : 16,
    };
    if (n > 0 && cell[n - 1] - cell[0] == n - 1 && head * (size_t) n_heads == stride) {
        a.from    = base + (size_t) cell[0] * stride;
        a.until   = a.from + (size_t) n * stride;
        a.page    = (const char *) ((uintptr_t) a.from & ~(uintptr_t) 4095);
        a.n_units = (uint32_t) ((a.until - a.page + FLAT_PAGES * 4096 - 1) / (FLAT_PAGES * 4096)) * FLAT_PAGES * 16;
    }
    return a;
}

static inline void prefetch_lines(const char * x, int lines) {
    for (int i = 0; i < lines; i++) {
        __builtin_prefetch(x + 64 * i, 0, 2);
    }
}

PLONG_INLINE void prefetch_pages(struct prefetch_queue * a) {
    while (a->credit > 0 && a->next < a->n_units) {
        const uint32_t i = a->next++, all = 16 * FLAT_PAGES;
        const char *   x = a->page + 256 * (size_t) (i / all * all + i % FLAT_PAGES * 16 + i / FLAT_PAGES % 16);
        if (x < a->until && x + 256 > a->from) {
            prefetch_lines(x, 4);
            a->credit -= 256 * a->n_heads;
        }
    }
}

PLONG_INLINE void prefetch_stream(struct prefetch_queue * a) {
    while (a->credit > 0 && a->from < a->until) {
        prefetch_lines(a->from, 4);
        a->from += 256;
        a->credit -= 256 * a->n_heads;
    }
}

PLONG_INLINE void prefetch_cells(struct prefetch_queue * a) {
    while (a->credit > 0 && a->group < a->n) {
        const int at = a->group + a->p * a->in_page + a->k;
        if (at < a->n) {
            prefetch_lines(a->base + (size_t) a->cell[at] * a->stride + 64 * (size_t) (a->at * a->unit), a->unit);
            a->credit -= (int) a->stride / a->units * a->n_heads;
        }
        if (++a->p == a->pages) {
            a->p = 0;
            if (++a->at == a->units) {
                a->at = 0;
                if (++a->k == a->in_page) {
                    a->k = 0;
                    a->group += a->pages * a->in_page;
                }
            }
        }
    }
}

/* Prefetches as many bytes as n more rows of one head take. */
PLONG_INLINE void prefetch_rows_of(struct prefetch_queue * a, int n) {
    a->credit += n * (int) a->stride;
    if (!a->page) {
        prefetch_cells(a);
    } else if (a->one_stream) {
        prefetch_stream(a);
    } else {
        prefetch_pages(a);
    }
}

/* Some of the next keys: n of them are prefetched while something is computed, or in each of its steps. */
struct prefetch_share {
    struct prefetch_queue * ahead;
    int                     n;
};

/* Prefetches into L1 what is already in the L2 cache. */
PLONG_INLINE void prefetch_near(const char * x, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) {
        __builtin_prefetch(x + i, 0, 3);
    }
}

#endif
