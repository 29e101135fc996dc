/* tiles.h - the tiles of a call, and the queue from which the threads take them. */
#ifndef PLONG_CPU_TILES_H
#define PLONG_CPU_TILES_H

#include "cpu/kernel.h"

#define PLONG_SEGMENT         8192 /* keys that are merged as a whole in wide tiles */
#define PLONG_NARROW_SEGMENTS 32 /* most segments of a narrow tile, but for those that its keys only begin or end in */

struct ggml_threadpool;

struct plong_queue {
    struct ggml_threadpool *  pool; /* counts the items that were taken */
    const struct plong_tile * tiles;
    int64_t                   n_tiles, n_items; /* more items than tiles: each is a segment */
};

/* Tiles get no smaller than this for the sake of balance: packing keys would cost too much. */
int32_t plong_min_rows(int32_t d_k, int32_t d_v);

/* Below this many tiles, threads would idle. */
int64_t plong_tiles_wanted(int n_threads);

/* Cuts the batch into tiles; returns how many. Every thread could do it, one does. */
int64_t plong_make_tiles(const struct plong_call * call, int n_threads, struct plong_tile * tiles);

/* Makes an item of each segment where there are too few tiles for the threads and memory for the segments' states: what
 * comes out is the same. Returns the number of items. */
int64_t plong_share_segments(struct plong_tile * tiles, int64_t n, int n_threads, int32_t rows, int64_t max_rows);

/* The tile of an item; false when there is no such item. */
bool plong_queue_item(const struct plong_queue * queue, int64_t item, struct plong_tile * tile);

#endif
