/* queue.h - the items of a call, which threads take one after the other: tiles, or the spans of these. */
#ifndef PLONG_CPU_QUEUE_H
#define PLONG_CPU_QUEUE_H

#include "cpu/kernel.h"

struct ggml_threadpool;

struct plong_queue {
    struct ggml_threadpool *  pool; /* counts the items that were taken */
    const struct plong_call * call;
    bool                      shared; /* each span is an item */
    int64_t                   n_items;
};

/* Below this many tiles, threads would idle. */
int64_t plong_tiles_wanted(int n_threads);

/* The items of a call. Items are spans if there are too few tiles for the threads, and memory for the states of all
 * spans: max_rows rows in all. The result is the same. */
struct plong_queue plong_queue_of(
    const struct plong_call * call, struct ggml_threadpool * pool, int n_threads, int64_t max_rows);

/* Takes the next item; -1 when there is none. */
int64_t plong_queue_take(const struct plong_queue * queue, struct plong_item * item);

#endif
