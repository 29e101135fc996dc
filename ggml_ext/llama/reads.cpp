/* reads.cpp - which keys the layers really read, for drawings: counted while a context records. */
#include <algorithm>

#include "choose.h"
#include "input.h"
#include "llama-context.h"

/* Counts of keys as differences: what is added to the count from a position on. */
static void add(std::vector<double> & reads, int64_t beg, int64_t end, double rows) {
    if (end > beg) {
        reads.resize(std::max(reads.size(), (size_t) end + 1));
        reads[(size_t) beg] += rows;
        reads[(size_t) end] -= rows;
    }
}

/* Those that the plan gives to the queries of a group: n_head rows each. */
static void add_planned(
    std::vector<double> & reads, const plong_batch & batch, const plong_group & group, const plong_shape & shape) {
    const plong_phase * phase = plong_batch_phase(&batch, shape.dense ? PLONG_PHASE_EXACT : group.phase);
    for (int32_t p = group.pos; p < group.pos + group.n; p++) {
        plong_range ranges[2];
        const int   n = plong_set_ranges(phase, p, p, ranges);
        for (int i = 0; i < n; i++) {
            add(reads, ranges[i].beg, ranges[i].end, shape.n_head);
        }
        for (int k = 0; k < plong_phase_branches_at(phase, p); k++) {
            for (int32_t h = 0; h < shape.n_head; h++) {
                plong_range   r      = {};
                const int32_t number = plong_shape_number(&shape, h);
                if (plong_branch_range(phase, k, p, p, number, &r)) {
                    for (int64_t t = r.beg; t < r.end; t += r.stride) {
                        add(reads, t, t + 1, 1);
                    }
                }
            }
        }
    }
}

void llm_graph_input_plong::add_reads(const layer_choices & layer) {
    const plong_batch & batch = *(const plong_batch *) packed.data();
    const plong_work &  work  = *find(layer.shape, *layer.backend)->work;
    const plong_tile *  tiles = plong_work_tiles(&work);
    auto &              reads = state->reads[layer.il];
    for (const plong_group & group : parts.groups) {
        add_planned(reads, batch, group, layer.shape);
    }
    if (!layer.choices) {
        return;
    }
    std::vector<int32_t> words(plong_work_choice_words(&work));
    ggml_backend_tensor_get(layer.choices, words.data(), 0, words.size() * sizeof(int32_t));
    plong_call call = {};
    call.work       = &work;
    call.choices    = words.data();
    for (int32_t i = 0; i < work.n_tiles; i++) {
        const plong_tile & tile = tiles[i];
        for (int32_t j = 0; tile.choice_room > 0 && j < plong_choices(&call, i)->n; j++) {
            const plong_range & keys = plong_choice_ranges(&call)[plong_choices(&call, i)->beg + j].keys;
            add(reads, keys.beg, keys.end, (double) tile.n_tok * tile.n_h);
        }
    }
}

extern "C" {

void plong_llama_record(llama_context * ctx, bool on) {
    plong_state & state = *ctx->get_cparams().plong;
    state.recording     = on;
    state.reads.clear();
    ctx->plong_changed();
}

size_t plong_llama_reads(const llama_context * ctx, int32_t layer, double * out, size_t n) {
    const auto & all   = ctx->get_cparams().plong->reads;
    const auto   found = all.find(layer);
    if (found == all.end()) {
        return 0;
    }
    double sum = 0;
    for (size_t t = 0; t < std::min(n, found->second.size()); t++) {
        sum += found->second[t];
        out[t] = sum;
    }
    return found->second.empty() ? 0 : found->second.size() - 1;
}

} // extern "C"
