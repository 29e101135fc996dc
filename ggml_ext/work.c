/* work.c - plans the work of a batch, and prints it. */
#include "work.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "choose.h"
#include "planner.h"

/* ---- lists ---------------------------------------------------------------------------------------------------- */

void * plong_extend(struct plong_list * list, int32_t n) {
    const int64_t wanted = (int64_t) list->n + n;
    if (wanted > list->room) {
        const int64_t room = wanted > 2 * (int64_t) list->room ? wanted + 64 : 2 * (int64_t) list->room;
        char *        at   = room < INT32_MAX / 4 ? realloc(list->at, (size_t) room * list->size) : NULL;
        if (!at) {
            list->failed = true;
            return NULL;
        }
        list->at   = at;
        list->room = (int32_t) room;
    }
    void * fresh = list->at + (size_t) list->n * list->size;
    list->n      = (int32_t) wanted;
    return fresh;
}

void plong_append(struct plong_list * list, const void * element) {
    void * at = plong_extend(list, 1);
    if (at) {
        memcpy(at, element, list->size);
    }
}

static size_t list_bytes(const struct plong_list * list) { return (size_t) list->n * list->size; }

/* ---- planning ------------------------------------------------------------------------------------------------- */

/* Copies the lists into one block of memory. */
static struct plong_work * pack(const struct plong_planner * p, const struct plong_list * const * lists, int n) {
    size_t size = sizeof(struct plong_work);
    for (int i = 0; i < n; i++) {
        size += list_bytes(lists[i]);
    }
    struct plong_work * work = malloc(size);
    if (!work) {
        return NULL;
    }
    *work = (struct plong_work) {
        .n_tiles   = p->tiles.n,
        .n_ranges  = p->ranges.n,
        .n_readers = p->readers.n,
        .n_rows    = p->rows.n,
        .n_counts  = p->counts.n,
        .shape     = *p->shape,
    };
    char * at = (char *) (work + 1);
    for (int i = 0; i < n; i++) {
        if (lists[i]->n > 0) {
            memcpy(at, lists[i]->at, list_bytes(lists[i]));
        }
        at += list_bytes(lists[i]);
    }
    const struct plong_tile * tiles = plong_work_tiles(work);
    for (int32_t i = 0; i < work->n_tiles; i++) {
        const int32_t rows  = plong_tile_rows(&tiles[i]);
        const int64_t parts = (int64_t) tiles[i].part + tiles[i].n_spans;
        work->tile_rows     = rows > work->tile_rows ? rows : work->tile_rows;
        work->n_parts       = (int32_t) (parts < INT32_MAX ? parts : INT32_MAX);
        work->n_chosen += tiles[i].choice_room;
        work->n_options = tiles[i].option != PLONG_OPTION_NONE ? p->batch->n_tokens : work->n_options;
    }
    return work;
}

struct plong_work * plong_work_new(
    const struct plong_batch * batch, const struct plong_shape * shape, const struct plong_limits * limits) {
    struct plong_limits wide = *limits;
    wide.narrow              = 0; /* so that a row's bits do not depend on how many there are */
    struct plong_planner p   = {
        .batch   = batch,
        .shape   = shape,
        .limits  = batch->step > 1 ? &wide : limits,
        .tiles   = { .size = sizeof(struct plong_tile) },
        .ranges  = { .size = sizeof(struct plong_tile_range) },
        .readers = { .size = sizeof(struct plong_readers) },
        .rows    = { .size = sizeof(struct plong_row) },
        .counts  = { .size = sizeof(struct plong_count) },
    };
    struct plong_list * const lists[] = { &p.tiles, &p.ranges, &p.readers, &p.rows, &p.counts };
    const int                 n       = sizeof(lists) / sizeof(lists[0]);
    bool                      failed  = false;
    plong_plan_tiles(&p);
    for (int32_t i = 0; i < p.tiles.n; i++) {
        plong_plan_ranges(&p, (struct plong_tile *) p.tiles.at + i);
    }
    for (int i = 0; i < n; i++) {
        failed |= lists[i]->failed;
    }
    struct plong_work * work = failed ? NULL : pack(&p, (const struct plong_list * const *) lists, n);
    for (int i = 0; i < n; i++) {
        free(lists[i]->at);
    }
    return work;
}

void plong_work_free(struct plong_work * work) { free(work); }

/* ---- its parts ------------------------------------------------------------------------------------------------ */

const struct plong_tile * plong_work_tiles(const struct plong_work * w) { return (const struct plong_tile *) (w + 1); }

const struct plong_tile_range * plong_work_ranges(const struct plong_work * w) {
    return (const struct plong_tile_range *) (plong_work_tiles(w) + w->n_tiles);
}

const struct plong_readers * plong_work_readers(const struct plong_work * w) {
    return (const struct plong_readers *) (plong_work_ranges(w) + w->n_ranges);
}

const struct plong_row * plong_work_rows(const struct plong_work * w) {
    return (const struct plong_row *) (plong_work_readers(w) + w->n_readers);
}

const struct plong_count * plong_work_counts(const struct plong_work * w) {
    return (const struct plong_count *) (plong_work_rows(w) + w->n_rows);
}

size_t plong_work_words(const struct plong_work * w) {
    const char * end = (const char *) (plong_work_counts(w) + w->n_counts);
    return (size_t) (end - (const char *) w) / sizeof(int32_t);
}

size_t plong_work_choice_words(const struct plong_work * w) {
    const size_t bytes = (size_t) w->n_tiles * sizeof(struct plong_choice) +
                         (size_t) w->n_chosen * sizeof(struct plong_tile_range) +
                         (size_t) w->n_options * sizeof(struct plong_verdict);
    return w->n_chosen > 0 ? bytes / sizeof(int32_t) : 0;
}

/* ---- printing ------------------------------------------------------------------------------------------------- */

struct page {
    char * text;
    size_t size, n;
};

static void put(struct page * page, const char * format, ...) __attribute__((format(printf, 2, 3)));

static void put(struct page * page, const char * format, ...) {
    const bool full = page->n >= page->size;
    va_list    arguments;
    va_start(arguments, format);
    const int n = vsnprintf(full ? NULL : page->text + page->n, full ? 0 : page->size - page->n, format, arguments);
    va_end(arguments);
    page->n += n > 0 ? (size_t) n : 0;
}

/* The first and the last of the rows. */
static void put_readers(struct page * page, const struct plong_work * w, const struct plong_readers * r) {
    const struct plong_row * rows = plong_work_rows(w);
    put(page, "    readers: %d rows", r->row_end - r->row_beg);
    if (r->branch >= 0) {
        put(page, " of branch %d", r->branch);
    }
    if (r->checks) {
        put(page, ", keys of earlier branches left out one by one");
    }
    if (r->count_end > r->count_beg) {
        put(page, ", %d counts", r->count_end - r->count_beg);
    }
    put(page, "\n");
    if (r->row_end > r->row_beg) {
        const struct plong_row a = rows[r->row_beg], z = rows[r->row_end - 1];
        put(page, "      first: row %d at %d reads %d .. %d", a.row, a.pos, a.lo, a.hi);
        put(page, "; last: row %d at %d reads %d .. %d\n", z.row, z.pos, z.lo, z.hi);
    }
}

static void put_tile(struct page * page, const struct plong_work * w, const struct plong_tile * t) {
    const struct plong_tile_range * ranges = plong_work_ranges(w);
    put(page, "  tokens %d-%d at positions %d-%d", t->tok, t->tok + t->n_tok - 1, t->pos, plong_tile_last(t));
    if (t->step > 1) {
        put(page, ", %d apart", t->step);
    }
    put(page, ", heads %d-%d", t->head, t->head + t->n_h - 1);
    if (t->n_kv > 1) {
        put(page, " of each of %d kv heads", t->n_kv);
    }
    put(page, ": %d rows, keys summed in %d x %d", plong_tile_rows(t), t->n_spans, t->span);
    if (t->gap > 0) {
        put(page, " (%d left out after %d)", t->gap, t->gap_beg);
    }
    put(page, t->option == PLONG_OPTION_WHOLE ? ", if most keys are to be read\n" : "\n");
    if (t->choice_room > 0) {
        put(page, "    and up to %d ranges that each layer chooses\n", t->choice_room);
    }
    for (int32_t i = t->range_beg; i < t->range_end; i++) {
        const struct plong_range * k = &ranges[i].keys;
        put(page, "    keys [%d, %d)", k->beg, k->end);
        if (k->stride > 1) {
            put(page, ", every %d", k->stride);
        }
        put(page, ": %lld%s", (long long) plong_range_count(k), ranges[i].sinks_end >= k->end ? ", for all rows" : "");
        if (ranges[i].log2_weight != 0.0f) {
            put(page, ", log2 weight %.3f", (double) ranges[i].log2_weight);
        }
        put(page, "\n");
        if (i + 1 == t->range_end || ranges[i + 1].readers != ranges[i].readers) {
            put_readers(page, w, plong_work_readers(w) + ranges[i].readers);
        }
    }
}

size_t plong_work_print(const struct plong_work * w, char * text, size_t size) {
    struct page page = { text, size, 0 };
    put(&page, "tiles: %d, of at most %d rows; key ranges: %d; ", w->n_tiles, w->tile_rows, w->n_ranges);
    put(&page, "groups of readers: %d, of %d rows in all\n", w->n_readers, w->n_rows);
    for (int32_t i = 0; i < w->n_tiles; i++) {
        put_tile(&page, w, plong_work_tiles(w) + i);
    }
    return page.n;
}
