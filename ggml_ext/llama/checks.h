/* checks.h - rows of a ubatch that are computed a second time, exactly: they measure the error of the plan, and may correct
 * their neighbours (Delta Attention, arXiv 2505.11254). C++, internal to libllama. */
#pragma once

#include <vector>

#include "plan.h"
#include "plong_state.h"

/* Which rows. */
struct plong_checks {
    std::vector<int32_t>     tokens; /* of the ubatch, ascending */
    std::vector<int32_t>     of;     /* [tokens of the ubatch] index of the check that corrects each; -1: none */
    std::vector<plong_group> groups; /* of the checks, whose positions are plong_plan.check apart */
};

/* Checks are the tokens that the plan checks and that do not read every key anyway. Each gets its exact result; if the plan
 * corrects, it also corrects those after it in the prefill, up to the next. In the tail tokens come one by one. */
plong_checks plong_find_checks(const plong_plan & plan, const std::vector<plong_group> & groups, int32_t n_tokens);

/* The results of one layer: what the plan left out, exact - sparse, and the exact rows: f32 [n_head][d_v] of each check. */
struct plong_checked {
    int32_t       il;
    int32_t       n_head;
    ggml_tensor * left_out;
    ggml_tensor * exact;
};

/* Adds the results of the last graph to the context's meter. */
void plong_meter_add(plong_state & state, const plong_checked & layer, int32_t n_checks);
