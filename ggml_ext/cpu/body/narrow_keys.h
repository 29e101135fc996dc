/* narrow_keys.h - the keys of a narrow job at their places in the cache, as head_logits() and head_values() pass them
 * to the parts that read a quantized cache in its own integers. */
#ifndef PLONG_CPU_BODY_NARROW_KEYS_H
#define PLONG_CPU_BODY_NARROW_KEYS_H

#include "cpu/body/blocks.h"

/* The keys of head 0 of the tile, and the next ones. */
struct narrow_keys {
    const struct keys *   keys;
    const char *          k[NARROW_BLOCK];
    const char *          v[NARROW_BLOCK];
    struct prefetch_queue k_ahead, v_ahead;
    int32_t               k_step; /* bytes from each k to the next, 0 if that is not constant */
};

#endif
