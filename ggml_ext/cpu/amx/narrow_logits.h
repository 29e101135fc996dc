/*
 * narrow_logits.h - logits of a few query rows against quantized keys, step by step. A step begins while the
 * previous one is finished, alternating every ten or so instructions: a product takes a hundred cycles from the cache
 * to memory, and the processor only looks some hundred instructions ahead. A tile cannot be loaded immediately after
 * its parts were stored, nor parts after a tile.
 */
#ifndef PLONG_CPU_AMX_NARROW_LOGITS_H
#define PLONG_CPU_AMX_NARROW_LOGITS_H

#include "cpu/amx/narrow_keys.h"

/* What is computed: logits of the keys x for the queries in `digits`. */
struct quant_run {
    const struct quant_rows * x;
    uint8_t *                 digits; /* of a kv head: quant_queries() */
    int                       rows, d;
    float *                   s;    /* [rows][NARROW_BLOCK] */
    struct quant_keys *       keys; /* [2] keys of a step, and of the previous one */
    struct prefetch_queue *   ahead;
};

/* The keys of a step: 16 keys, and up to 4 of their blocks. m = 0: there is no step. */
struct quant_part {
    struct quant_keys *  k;
    int                  key, block, m;
    const char * const * row; /* [16] */
    size_t               at;  /* bytes from there to the first block */
};

PLONG_INLINE struct quant_part quant_part(const int32_t type, const struct quant_run run, int i) {
    if (i < 0) {
        return (struct quant_part) { 0 };
    }
    const int nb = run.d / 32, parts = (nb + 3) / 4, key = i / parts * 16, b = i % parts * 4;
    return (struct quant_part) {
        run.keys + i % 2, key, b, nb - b < 4 ? nb - b : 4, run.x->row + key, run.x->at + quant_block(type, b)
    };
}

/* Whether keys are gathered, one step before their products; q4_0's are in the step itself */
PLONG_INLINE bool quant_gathers(const int32_t type, const struct quant_rows * x) {
    return quant_as_bytes(type) && (type != GGML_TYPE_Q8_0 || !x->step);
}

/* Where the products of a step read its keys: in the cache, or gathered. */
PLONG_INLINE struct quant_source quant_source(
    const int32_t type, const struct quant_rows * x, const struct quant_part * part) {
    if (part->m == 0) {
        return (struct quant_source) { NULL, 0, 0 };
    }
    if (!quant_gathers(type, x)) {
        return (struct quant_source) { part->row[0] + part->at + quant_at(type, 0), (size_t) x->step,
                                       block_bytes(type) };
    }
    return (struct quant_source) { (const char *) part->k->value, 128, 32 };
}

PLONG_INLINE float * quant_logits_at(const struct quant_run run, int group, int key) {
    return run.s + (size_t) group * QUANT_ROWS * NARROW_BLOCK + key;
}

/* A group's part of steps of bytes: begins `now` and finishes `then`. rows: of the group */
PLONG_INLINE void quant_step_q8(
    const int32_t type, const int rows, const struct quant_run run, const struct quant_part * now,
    const struct quant_part * then, int group) {
    const uint8_t *           q      = run.digits + (size_t) group * quant_group_size(run.d) + 256 * now->block;
    const struct quant_source source = quant_source(type, run.x, now);
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
            quant_prefetch(run.ahead, 16, (now->block + b) / 2, (run.d / 32 + 1) / 2);
            const size_t at  = now->at + quant_block(type, b);
            const bool   two = b + 1 < now->m;
            quant_scales_q8(type, now->row, at, two, now->k->scale + b);
            quant_offsets_q8(type, now->row, at, two, now->k->scale + b, now->k->offset + b);
        }
        if (b < then->m) {
            quant_scale_q8(then->k, then->k->sum[group], b, sum);
        }
    }
    if (then->m > 0) {
        const struct quant_finish finish = {
            quant_weights(run.digits, run.d, group),
            quant_sums(run.digits, run.d, group) + then->block * QUANT_ROWS,
            then->m,
            then->block > 0,
        };
        quant_finish_q8(type, rows, then->k, sum, finish, quant_logits_at(run, group, then->key));
    }
}

/* The same for q4_0 */
PLONG_INLINE void quant_step_q4(
    const int rows, const struct quant_run run, const struct quant_part * now, const struct quant_part * then,
    int group) {
    const uint8_t * q = run.digits + (size_t) group * quant_group_size(run.d) + 512 * then->block;
#pragma GCC unroll 4
    for (int b = 0; b < 4; b++) {
        if (b < then->m && b % 2 == 0) {
            quant_dot_q4(b, then->k, q, then->k->sum[group]);
        }
        if (b < now->m && group == 0 && b % 2 == 0) {
            quant_prefetch(run.ahead, 16, (now->block + b) / 2, (run.d / 32 + 1) / 2);
        }
        if (b < now->m && group == 0) {
            quant_load_q4(now->k, now->row, now->at, b);
        }
    }
    if (now->m > 0 && group == 0) {
        quant_scales_q4(now->row, now->at, now->m, now->k->scale);
    }
    if (then->m > 0) {
        const float * weight = quant_weights(run.digits, run.d, group);
        float *       s      = quant_logits_at(run, group, then->key);
        quant_finish_q4(rows, then->k, then->k->sum[group], then->m, weight, then->block > 0, s);
    }
}

PLONG_INLINE void quant_step_group(
    const int32_t type, const int rows, const struct quant_run run, const struct quant_part * now,
    const struct quant_part * then, int group) {
    if (quant_as_bytes(type)) {
        quant_step_q8(type, rows, run, now, then, group);
    } else {
        quant_step_q4(rows, run, now, then, group);
    }
}

PLONG_INLINE void quant_gather_step(const int32_t type, const struct quant_run run, int i) {
    if (quant_gathers(type, run.x)) {
        const struct quant_part part = quant_part(type, run, i);
        quant_gather(type, part.k, part.row, part.at, part.m);
    }
}

/* Begins step i and finishes step i - 1, if there are such steps. more: there is a step i + 1 */
PLONG_INLINE void quant_step(
    const int32_t type, const struct quant_run run, int i, const bool begins, const bool ends, bool more) {
    const struct quant_rows * x     = run.x;
    const struct quant_part   now   = quant_part(type, run, begins ? i : -1);
    const struct quant_part   then  = quant_part(type, run, ends ? i - 1 : -1);
    const int                 ahead = now.key + (quant_gathers(type, x) ? 32 : 16);
    for (int j = ahead; begins && now.block == 0 && j < ahead + 16 && j < x->n; j++) {
        prefetch_near(x->row[j] + x->at, run.d / 32 * block_bytes(type));
    }
    if (more) { /* where the keys of step i - 1 were */
        quant_gather_step(type, run, i + 1);
    }
    QUANT_STORED();
    for (int g = 0; g * QUANT_ROWS < run.rows; g++) {
        const int left = run.rows - g * QUANT_ROWS;
        if (left >= QUANT_ROWS) {
            quant_step_group(type, QUANT_ROWS, run, &now, &then, g);
        } else {
            quant_step_group(type, left, run, &now, &then, g);
        }
    }
}

/* usual: runs the steps between the first and the last in a loop without branches */
PLONG_INLINE void quant_logits_of(const int32_t type, const bool usual, struct quant_run run) {
    const int         steps = (run.x->n + 15) / 16 * ((run.d / 32 + 3) / 4);
    struct quant_keys keys[2];
    run.keys = keys;
    quant_gather_step(type, run, 0);
    if (!usual) {
        for (int i = 0; i <= steps; i++) {
            quant_step(type, run, i, i < steps, i > 0, i + 1 < steps);
        }
        return;
    }
    quant_step(type, run, 0, true, false, steps > 1);
    for (int i = 1; i < steps; i++) {
        quant_step(type, run, i, true, true, i + 1 < steps);
    }
    quant_step(type, run, steps, false, true, false);
}

/* s[rows][NARROW_BLOCK] for the keys, padded to 16. */
static void quant_logits(
    const struct quant_rows * x, uint8_t * digits, int rows, int d, float * s, struct prefetch_queue * ahead) {
    const struct quant_run any   = { x, digits, rows, d, s, NULL, ahead };
    const struct quant_run usual = { x, digits, QUANT_ROWS, 128, s, NULL, ahead };
    if (rows == QUANT_ROWS && d == 128) {
        QUANT_FOR_TYPE(quant_logits_of, x->type, true, usual)
    } else {
        QUANT_FOR_TYPE(quant_logits_of, x->type, false, any)
    }
}

#endif
