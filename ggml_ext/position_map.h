/*
 * position_map.h - position maps as arithmetic (docs/rope.md): where keys are stored, and where a query is rotated for
 * each zone of distances. A pair of query p and key t has the distance
 *
 *     query(zone(p, t), p) - stored(t), or - t in zones that unfold keys
 *
 * `map` is rope->map, or PLONG_MAP_ABSOLUTE for layers without RoPE.
 */
#ifndef PLONG_POSITION_MAP_H
#define PLONG_POSITION_MAP_H

#include "ggml_ext.h"

/* Zones of a map. */
static inline int plong_map_zones(int32_t map) { return map == PLONG_MAP_ABSOLUTE ? 1 : map == PLONG_MAP_DCA ? 3 : 2; }

/* Positions of a chunk of Dual Chunk Attention. */
static inline int32_t plong_dca_chunk(const struct plong_rope * rope) { return rope->chunk - rope->local; }

/* The position at which a key is rotated in the cache. */
static inline int32_t plong_map_stored(const struct plong_rope * rope, int32_t map, int32_t t) {
    switch (map) {
        case PLONG_MAP_DCA: return t % plong_dca_chunk(rope);
        case PLONG_MAP_SELF_EXTEND: return t / rope->chunk;
        case PLONG_MAP_REROPE: return 0;
        default: return t;
    }
}

/* 0: near. For Dual Chunk Attention, 1: the previous chunk; 2: everything before it. For the others, 1: beyond the
 * window */
static inline int plong_map_zone(const struct plong_rope * rope, int32_t map, int32_t p, int32_t t) {
    switch (map) {
        case PLONG_MAP_DCA: {
            const int32_t m = p / plong_dca_chunk(rope) - t / plong_dca_chunk(rope);
            return m < 0 ? 0 : m > 2 ? 2 : m;
        }
        case PLONG_MAP_SELF_EXTEND: return p - t < rope->local ? 0 : 1;
        case PLONG_MAP_REROPE: return p - t < rope->chunk ? 0 : 1;
        default: return 0;
    }
}

/* The position to which the query at p is rotated for a zone. */
static inline int32_t plong_map_query(const struct plong_rope * rope, int32_t map, int zone, int32_t p) {
    switch (map) {
        case PLONG_MAP_DCA: {
            const int32_t next = p % plong_dca_chunk(rope) + plong_dca_chunk(rope);
            return zone == 0 ? p % plong_dca_chunk(rope) : zone == 1 && next < rope->chunk ? next : rope->chunk;
        }
        case PLONG_MAP_SELF_EXTEND: return zone == 0 ? p : p / rope->chunk + (rope->local - rope->local / rope->chunk);
        case PLONG_MAP_REROPE: return zone == 0 ? p : rope->chunk;
        default: return p;
    }
}

/* Maps that store keys at folded positions unfold them, to their own positions, for the near zone. */
static inline bool plong_map_unfolds(int32_t map, int zone) {
    return zone == 0 && (map == PLONG_MAP_SELF_EXTEND || map == PLONG_MAP_REROPE);
}

#endif
