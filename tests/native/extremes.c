/*
 * extremes.c - plans and RoPE policies of the smallest and largest numbers, at the first and last positions, for the
 * undefined-behaviour sanitizer: what the checks let through must compute without an overflow, and frequencies must be
 * numbers.
 *
 *     extremes        exit code 1 when a frequency is no number
 */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cpu/dispatch.h"

#define N(array) (int) (sizeof(array) / sizeof((array)[0]))

static const int32_t COUNTS[] = { INT_MIN, -1, 0, 1, 2, 7, 64, PLONG_LONGEST - 1, PLONG_LONGEST, INT_MAX - 1, INT_MAX };
static const int32_t POSITIONS[] = { 0, 1, 63, 64, 65, PLONG_LONGEST / 2, PLONG_LONGEST - 2, PLONG_LONGEST - 1 };
static const int32_t HEADS[]     = { 0, 1, 31, 1023 };
static const float   FACTORS[]   = { -1, 0, 1, 1.5f, 1e30f, 3.4e38f, 1e-45f, INFINITY, NAN };

static long     planned, taken_plans, taken_policies, refused, bad;
static double   sink; /* keeps what is computed */
static uint32_t random_state = 1;

static int32_t below(int32_t n) {
    random_state = random_state * 1664525u + 1013904223u;
    return (int32_t) ((random_state >> 8) % (uint32_t) n);
}

static int32_t pick(void) { return COUNTS[below(N(COUNTS))]; }

/* Mostly what the checks let through. */
static int32_t pick_length(void) { return below(8) ? COUNTS[3 + below(N(COUNTS) - 5)] : pick(); }

static float pick_factor(void) { return FACTORS[below(N(FACTORS))]; }

static void walk_phase(const struct plong_phase * ph, int32_t p0, int32_t p1, int32_t h) {
    struct plong_range set[2], r;
    const int32_t      cut = plong_phase_cut(ph, p0, p1);
    const int          n   = plong_set_ranges(ph, p0, cut, set);
    bad += cut < p0 || cut > p1;
    for (int i = 0; i < n; i++) {
        sink += (double) plong_range_count(&set[i]);
        bad += set[i].beg < 0 || set[i].end > p1 + 1;
    }
    for (int k = 0; k < ph->n_branches; k++) {
        if (plong_branch_range(ph, k, p0, cut, h, &r)) {
            bad += r.beg < 0 || r.end > p1 + 1 || r.stride < 1;
            sink += (double) plong_branch_weight(ph, k, cut, h, r.beg);
        }
        sink += plong_branch_top(ph, k, p0, h) + plong_branch_begin(ph, k, p0);
    }
    sink += (double) plong_phase_cost(ph, p1, h) + plong_phase_nests(ph) + plong_phase_branches_at(ph, p1);
    bad += plong_phase_cost(ph, p1, h) > (int64_t) p1 + 1;
    if (p1 < 100) {
        sink += (double) (plong_phase_keys(ph, p1, h, 0, NULL, NULL) + plong_phase_count(ph, p1, h));
    }
}

/* Plans the work of 3 tokens at a position, with 8 heads; every range and bound must lie within their sequence. */
static void plan_work(const struct plong_plan * plan, int32_t pos) {
    const struct plong_shape shape = { 64, 64, 8, 2, below(2) };
    struct {
        struct plong_batch head;
        struct plong_slot  slot;
        struct plong_group group;
        struct plong_run   run;
    } b;
    memset(&b, 0, sizeof(b));
    b.head.n_slots = b.head.n_groups = b.head.n_runs = 1;

    b.head.n_tokens                  = 3;
    b.head.plan                      = *plan;
    b.slot                           = (struct plong_slot) { 0, 0, 1 };
    b.group                          = (struct plong_group) { 0, 0, 0, 3, pos };
    b.run                            = (struct plong_run) { 0, 0, pos };
    const struct plong_limits limits = plong_cpu_limits(&shape, 1 + below(8));
    struct plong_work *       work   = plong_work_new(&b.head, &shape, &limits);
    if (!work) {
        bad++;
        return;
    }
    for (int32_t i = 0; i < work->n_ranges; i++) {
        const struct plong_range * keys = &plong_work_ranges(work)[i].keys;
        bad += keys->beg < 0 || keys->end > pos + 3 || keys->stride < 1;
    }
    for (int32_t i = 0; i < work->n_rows; i++) {
        const struct plong_row * row = &plong_work_rows(work)[i];
        bad += row->row < 0 || row->row >= work->tile_rows || row->lo < 0 || row->hi > row->pos;
    }
    for (int32_t i = 0; i < work->n_tiles; i++) {
        const struct plong_tile * tile = &plong_work_tiles(work)[i];
        bad += tile->n_spans < 1 || plong_span_begin(tile, tile->n_spans - 1) > pos + 2;
    }
    planned++;
    plong_work_free(work);
}

static void try_plan(void) {
    struct plong_plan plan;
    memset(&plan, 0, sizeof(plan));
    plan.dense_layers       = pick();
    struct plong_phase * ph = &plan.phase[0];
    *ph                     = (struct plong_phase) {
                            .sinks       = below(4) ? COUNTS[2 + below(N(COUNTS) - 2)] : pick(),
                            .window      = below(4) ? COUNTS[2 + below(N(COUNTS) - 2)] : pick(),
                            .global      = below(4) ? COUNTS[2 + below(N(COUNTS) - 2)] : pick(),
                            .dense_below = below(4) ? COUNTS[2 + below(N(COUNTS) - 2)] : pick(),
                            .weight      = below(3),
                            .align       = below(2),
                            .n_branches  = below(3),
    };
    for (int i = 0; i < 2; i++) {
        ph->segment[i] = pick_length();
        ph->rate[i]    = pick_length();
    }
    if (plong_plan_check(&plan)) {
        refused++;
        return;
    }
    taken_plans++;
    plan_work(&plan, POSITIONS[below(N(POSITIONS))]);
    for (int i = 0; i < N(POSITIONS); i++) {
        for (int j = i; j < N(POSITIONS); j++) {
            for (int h = 0; h < N(HEADS); h++) {
                walk_phase(ph, POSITIONS[i], POSITIONS[j], HEADS[h]);
            }
        }
    }
}

static void try_rope(void) {
    static double     f[PLONG_MAX_ROT / 2];
    struct plong_rope rope;
    memset(&rope, 0, sizeof(rope));
    rope.freq      = below(7);
    rope.factor    = pick_factor();
    rope.beta_fast = pick_factor();
    rope.beta_slow = pick_factor();
    rope.low_freq  = pick_factor();
    rope.high_freq = pick_factor();
    rope.map       = below(5);
    rope.chunk     = pick_length();
    rope.local     = pick_length();
    rope.logn      = below(2);
    rope.n_train   = pick_length();
    rope.dynamic   = below(2);
    rope.n_factors = below(2) ? PLONG_MAX_ROT / 2 : pick();
    const int n    = below(4);
    for (int i = 0; i < PLONG_MAX_ROT / 2; i++) {
        rope.factors[i] = n ? 1.5f : pick_factor();
    }
    if (plong_rope_check(&rope)) {
        refused++;
        return;
    }
    taken_policies++;
    for (int n_rot = 2; n_rot <= PLONG_MAX_ROT; n_rot *= 16) {
        bad += !isfinite(plong_rope_freqs(&rope, n_rot, 10000.0, NULL, f));
        for (int i = 0; i < n_rot / 2; i++) {
            bad += !isfinite(f[i]);
        }
    }
    for (int i = 0; i < N(POSITIONS); i++) {
        sink += plong_rope_stored(&rope, POSITIONS[i]) + (double) plong_rope_logn(&rope, POSITIONS[i]);
        bad += !isfinite(plong_rope_logn(&rope, POSITIONS[i]));
        for (int j = i; j < N(POSITIONS); j++) {
            sink += plong_rope_distance(&rope, POSITIONS[j], POSITIONS[i]);
        }
    }
}

int main(void) {
    for (int i = 0; i < 40000; i++) {
        try_plan();
        try_rope();
    }
    printf(
        "%ld plans and %ld policies taken, %ld refused, %ld wrong (sum %g)\n", taken_plans, taken_policies, refused,
        bad, sink);
    return bad > 0 || taken_plans < 1000 || taken_policies < 1000;
}
