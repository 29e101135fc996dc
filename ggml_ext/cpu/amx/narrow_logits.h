/*
 * narrow_logits.h - logits of a few query rows against q8_0 or q4_0 keys, step by step. One step is begun while the one
 * before is finished, by turns of some ten instructions: a product takes a hundred cycles from the cache to memory, and
 * the processor looks no more than some hundred instructions ahead. What was just stored as parts cannot be loaded as a
 * tile at once, nor the other way round.
 */
#ifndef PLONG_CPU_AMX_NARROW_LOGITS_H
#define PLONG_CPU_AMX_NARROW_LOGITS_H

#include "cpu/amx/narrow_keys.h"

/* What a step is about: 16 keys, and up to 4 of their blocks. No step has no blocks. */
struct quant_part {
    struct quant_keys *  k;
    int                  key, block, m;
    const char * const * row; /* [16] */
    size_t               at;  /* bytes from there to the first block */
};

PLONG_INLINE struct quant_part quant_part(
    const int32_t type, const struct quant_rows * x, struct quant_keys * keys, int i, int nb) {
    if (i < 0) {
        return (struct quant_part) { 0 };
    }
    const int parts = (nb + 3) / 4, key = i / parts * 16, b = i % parts * 4, m = nb - b < 4 ? nb - b : 4;
    return (struct quant_part) { keys + i % 2, key, b, m, x->row + key, x->at + quant_block(type, b) };
}

/* Where the products of a step find its keys: in the cache, or gathered. */
PLONG_INLINE struct quant_source quant_source(const struct quant_rows * x, const struct quant_part * part) {
    if (part->m == 0) {
        return (struct quant_source) { NULL, 0, 0 };
    }
    if (x->step) {
        const size_t at = part->at + quant_at(GGML_TYPE_Q8_0, 0);
        return (struct quant_source) { part->row[0] + at, (size_t) x->step, sizeof(struct q8_block) };
    }
    return (struct quant_source) { (const char *) part->k->value, 128, 32 };
}

/* A group's part of steps of q8_0: `now` is begun, `then` finished. */
PLONG_INLINE void quant_step_q8(
    const int rows, const struct quant_rows * x, const struct quant_part * now, const struct quant_part * then,
    uint8_t * digits, int group, int d, float * s, struct prefetch_queue * ahead) {
    const uint8_t *           q      = digits + (size_t) group * quant_group_size(d) + 256 * now->block;
    const struct quant_source source = quant_source(x, now);
    vf                        sum[8];
    for (int i = 0; i < 8; i++) {
        sum[i] = vf_zero();
    }
#pragma GCC unroll 4
    for (int b = 0; b < 4; b++) {
        if (b < now->m) {
            quant_dot_q8(b, source, q, now->k->sum[group]);
        }
        if (b < now->m && group == 0 && b % 2 == 0) {
            quant_prefetch(ahead, 16, (now->block + b) / 2, (d / 32 + 1) / 2);
            quant_scales_q8(now->row, now->at + quant_block(GGML_TYPE_Q8_0, b), b + 1 < now->m, now->k->scale + b);
        }
        if (b < then->m) {
            quant_scale_q8(then->k, then->k->sum[group], b, sum);
        }
    }
    if (then->m > 0) {
        quant_finish_q8(rows, sum, quant_weights(digits, d, group), then->block > 0, s + then->key);
    }
}

/* The same of q4_0 */
PLONG_INLINE void quant_step_q4(
    const int rows, const struct quant_part * now, const struct quant_part * then, uint8_t * digits, int group, int d,
    float * s, struct prefetch_queue * ahead) {
    const uint8_t * q = digits + (size_t) group * quant_group_size(d) + 512 * then->block;
#pragma GCC unroll 4
    for (int b = 0; b < 4; b++) {
        if (b < then->m && b % 2 == 0) {
            quant_dot_q4(b, then->k, q, then->k->sum[group]);
        }
        if (b < now->m && group == 0 && b % 2 == 0) {
            quant_prefetch(ahead, 16, (now->block + b) / 2, (d / 32 + 1) / 2);
        }
        if (b < now->m && group == 0) {
            quant_load_q4(now->k, now->row, now->at, b);
        }
    }
    if (now->m > 0 && group == 0) {
        quant_scales_q4(now->row, now->at, now->m, now->k->scale);
    }
    if (then->m > 0) {
        const float * weight = quant_weights(digits, d, group);
        quant_finish_q4(rows, then->k, then->k->sum[group], then->m, weight, then->block > 0, s + then->key);
    }
}

PLONG_INLINE void quant_step_group(
    const int32_t type, const int rows, const struct quant_rows * x, const struct quant_part * now,
    const struct quant_part * then, uint8_t * digits, int group, int d, float * s, struct prefetch_queue * ahead) {
    s += (size_t) group * QUANT_ROWS * NARROW_BLOCK;
    if (type == GGML_TYPE_Q8_0) {
        quant_step_q8(rows, x, now, then, digits, group, d, s, ahead);
    } else {
        quant_step_q4(rows, now, then, digits, group, d, s, ahead);
    }
}

/* Step i is begun and step i - 1 finished, where there are such steps. */
PLONG_INLINE void quant_step(
    const int32_t type, const struct quant_rows * x, struct quant_keys * keys, int i, const bool begins,
    const bool ends, uint8_t * digits, int rows, int d, float * s, struct prefetch_queue * ahead) {
    const struct quant_part now  = quant_part(type, x, keys, begins ? i : -1, d / 32);
    const struct quant_part then = quant_part(type, x, keys, ends ? i - 1 : -1, d / 32);
    for (int j = now.key + 16; begins && now.block == 0 && j < now.key + 32 && j < x->n; j++) {
        prefetch_near(x->row[j] + x->at, d / 32 * (int) narrow_quant_bytes(type));
    }
    if (type == GGML_TYPE_Q8_0 && begins && !x->step) {
        quant_gather(now.k, now.row, now.at, now.m);
    }
    QUANT_STORED();
    for (int g = 0; g * QUANT_ROWS < rows; g++) {
        const int left = rows - g * QUANT_ROWS;
        if (left >= QUANT_ROWS) {
            quant_step_group(type, QUANT_ROWS, x, &now, &then, digits, g, d, s, ahead);
        } else {
            quant_step_group(type, left, x, &now, &then, digits, g, d, s, ahead);
        }
    }
}

/* usual: a loop of its own for what is no first or last step, without branches */
PLONG_INLINE void quant_logits_of(
    const int32_t type, const bool usual, const struct quant_rows * x, uint8_t * digits, int rows, int d, float * s,
    struct prefetch_queue * ahead) {
    const int         steps = (x->n + 15) / 16 * ((d / 32 + 3) / 4);
    struct quant_keys keys[2];
    if (!usual) {
        for (int i = 0; i <= steps; i++) {
            quant_step(type, x, keys, i, i < steps, i > 0, digits, rows, d, s, ahead);
        }
        return;
    }
    quant_step(type, x, keys, 0, true, false, digits, rows, d, s, ahead);
    for (int i = 1; i < steps; i++) {
        quant_step(type, x, keys, i, true, true, digits, rows, d, s, ahead);
    }
    quant_step(type, x, keys, steps, false, true, digits, rows, d, s, ahead);
}

/* s[rows][NARROW_BLOCK] for the keys, padded to 16. */
static void quant_logits(
    const struct quant_rows * x, uint8_t * digits, int rows, int d, float * s, struct prefetch_queue * ahead) {
    const bool usual = rows == QUANT_ROWS && d == 128;
    if (x->type == GGML_TYPE_Q8_0) {
        if (usual) {
            quant_logits_of(GGML_TYPE_Q8_0, true, x, digits, QUANT_ROWS, 128, s, ahead);
        } else {
            quant_logits_of(GGML_TYPE_Q8_0, false, x, digits, rows, d, s, ahead);
        }
    } else if (usual) {
        quant_logits_of(GGML_TYPE_Q4_0, true, x, digits, QUANT_ROWS, 128, s, ahead);
    } else {
        quant_logits_of(GGML_TYPE_Q4_0, false, x, digits, rows, d, s, ahead);
    }
}

#endif
