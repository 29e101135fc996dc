/* latent_none.h - for instruction sets without a part of their own for values that are the first dims of their keys. */
#ifndef PLONG_CPU_BODY_LATENT_NONE_H
#define PLONG_CPU_BODY_LATENT_NONE_H

#include "cpu/body/blocks.h"

static bool takes_latent(const struct tile_run * t) {
    (void) t;
    return false;
}

static void block_latent(struct tile_run * t, const struct key_block * b, const struct key_block * next) {
    (void) t, (void) b, (void) next;
}

#endif
