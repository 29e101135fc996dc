/* zones.h - position maps: the rotation of q (and of k) that gives a pair its distance, and the queries rotated for
 * each zone. */
#ifndef PLONG_CPU_BODY_ZONES_H
#define PLONG_CPU_BODY_ZONES_H

#include "cpu/kernel.h"
#include "cpu/body/rows.h"
#include "position_map.h"

/* q [zones][rows][plong_pad32(d_k)] f32, scaled so that q * k is the logit in base 2; angles [n_rot/2][2] is scratch */
static void load_queries(
    const struct plong_call * call, const struct plong_tile * tile, int32_t map, float * q, float * angles) {
    const struct plong_rope * rope = &call->batch->rope;
    const int                 dk = plong_pad32(call->d_k), rows = plong_tile_rows(tile), had = call->params.hadamard;
    for (int i = 0; i < tile->n_tok; i++) {
        const int32_t p     = plong_tile_pos(tile, i);
        const float   scale = call->params.scale * plong_rope_logn(rope, p) * 1.44269504f;
        for (int z = 0; z < plong_map_zones(map); z++) {
            const int64_t shift = plong_map_query(rope, map, z, p) - plong_map_stored(rope, map, p);
            if (shift) {
                plong_rope_angles(call->table, call->params.n_rot, &shift, 1, angles);
            }
            for (int j = 0; j < tile->n_kv * tile->n_h; j++) {
                const int     kv = j / tile->n_h, h = j % tile->n_h, head = tile->head + kv * call->n_group + h;
                const char *  src = call->q + (size_t) (tile->tok + i) * call->q_tok + (size_t) head * call->q_head;
                float *       dst = q + ((size_t) z * rows + (kv * tile->n_tok + i) * tile->n_h + h) * dk;
                const bool    transforms = had && !plong_map_unfolds(map, z);
                const bool    as_is      = !shift && !transforms && call->d_k == dk;
                const float * from       = as_is ? (const float *) src : dst;
                if (!as_is) {
                    row_to_f32(GGML_TYPE_F32, src, dst, call->d_k);
                }
                if (shift) {
                    row_rotate(dst + call->params.rot_first, angles, call->params.n_rot, call->params.neox);
                }
                if (transforms) {
                    row_hadamard(dst, call->d_k, had);
                }
                for (int x = 0; x < dk; x += VW) {
                    vf_store(dst + x, vf_mul(vf_load(from + x), vf_set1(scale)));
                }
            }
        }
    }
}

/* Transforms a key's f32 row x (as cached) back to the basis before the Hadamard transform, then rotates it to its true
 * position. */
static void unfold_key(const struct plong_call * call, int32_t pos, float * x, float * angles) {
    const int64_t shift = (int64_t) pos - plong_rope_stored(&call->batch->rope, pos);
    if (call->params.hadamard) {
        row_hadamard(x, call->d_k, call->params.hadamard);
    }
    plong_rope_angles(call->table, call->params.n_rot, &shift, 1, angles);
    row_rotate(x + call->params.rot_first, angles, call->params.n_rot, call->params.neox);
}

#endif
