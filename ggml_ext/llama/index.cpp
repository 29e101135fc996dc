/* index.cpp - the indexes of keys of a context: their memory, and which pages must be written anew. */
#include "index.h"

#include <algorithm>
#include <new>
#include <set>

#include "choose.h"
#include "llama-context.h"
#include "llama-kv-cache.h"

ggml_tensor * plong_index::tensor(ggml_context * ctx, int64_t stream, int64_t n_stream) const {
    ggml_tensor * t    = ggml_new_tensor_4d(ctx, GGML_TYPE_I8, ne[0], ne[1], ne[2], n_stream);
    char *        base = (char *) ggml_backend_buffer_get_base(buffer.get());
    ggml_backend_tensor_alloc(buffer.get(), t, base + stream * (int64_t) t->nb[3]);
    ggml_set_name(t, "plong_index");
    return t;
}

const plong_index & plong_index_of(plong_state & state, const ggml_tensor * k, uint32_t n_cells, uint32_t n_stream) {
    std::shared_ptr<plong_index> & known = state.indexes[k->view_src ? k->view_src : k];
    if (!known) {
        auto          fresh = std::make_shared<plong_index>();
        const int32_t parts = plong_plan_index(&state.config.plan);
        const size_t  size  = plong_index_bytes(parts, (int32_t) k->ne[0], (int32_t) k->ne[1], n_cells, n_stream);
        fresh->ne[0]        = (int64_t) plong_page_bytes(parts, (int32_t) k->ne[0]);
        fresh->ne[1]        = (n_cells + PLONG_PAGE - 1) / PLONG_PAGE;
        fresh->ne[2]        = k->ne[1];
        fresh->buffer.reset(ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size));
        if (!fresh->buffer) {
            throw std::bad_alloc();
        }
        known = fresh;
        plong_forget(&state);
    }
    return *known;
}

std::vector<plong_page> plong_missing_pages(
    const plong_state & state, const plong_plan & plan, const plong_batch_parts & parts, uint32_t stream) {
    std::vector<plong_page> out;
    for (const plong_group & g : parts.groups) {
        const plong_slot & slot = parts.slots[g.slot];
        int32_t            beg, end;
        if (!plong_phase_wants_index(&plan.phase[g.phase])) {
            continue;
        }
        plong_phase_candidates(&plan.phase[g.phase], g.pos + g.n - 1, &beg, &end);
        for (int32_t r = slot.run_beg; r < slot.run_end; r++) {
            const plong_run & run  = parts.runs[r];
            const int32_t     from = std::max(run.pos, beg), until = std::min(run.pos + run.n, end);
            if (from >= until) {
                continue;
            }
            const int32_t last = (run.cell + until - 1 - run.pos) / PLONG_PAGE;
            for (int32_t page = (run.cell + from - run.pos) / PLONG_PAGE; page <= last; page++) {
                if (!plong_is_indexed(state, { (int32_t) stream + slot.stream, page })) {
                    out.push_back({ slot.stream, page });
                }
            }
        }
    }
    const auto before = [](const plong_page & a, const plong_page & b) {
        return a.stream != b.stream ? a.stream < b.stream : a.page < b.page;
    };
    const auto same = [](const plong_page & a, const plong_page & b) {
        return a.stream == b.stream && a.page == b.page;
    };
    std::sort(out.begin(), out.end(), before);
    out.erase(std::unique(out.begin(), out.end(), same), out.end());
    return out;
}

bool plong_is_indexed(const plong_state & state, plong_page page) {
    const size_t s = (size_t) page.stream, p = (size_t) page.page;
    return s < state.indexed.size() && p < state.indexed[s].size() && state.indexed[s][p];
}

void plong_set_indexed(plong_state & state, plong_page page) {
    const size_t s = (size_t) page.stream, p = (size_t) page.page;
    if (s >= state.indexed.size()) {
        state.indexed.resize(s + 1);
    }
    if (p >= state.indexed[s].size()) {
        state.indexed[s].resize(p + 1);
    }
    state.indexed[s][p] = true;
}

void plong_touch(plong_state * state, uint32_t stream, uint32_t cell) {
    if (state && stream < state->indexed.size() && cell / PLONG_PAGE < state->indexed[stream].size()) {
        state->indexed[stream][cell / PLONG_PAGE] = false;
    }
}

bool plong_by_blocks(const plong_state * state) {
    return state && state->enabled() && plong_plan_wants_index(&state->config.plan);
}

void plong_forget(plong_state * state) {
    if (state) {
        state->indexed.clear();
    }
}

extern "C" int64_t plong_llama_index_memory(const llama_context * ctx) {
    const plong_state &           state = *ctx->get_cparams().plong;
    const plong_plan &            plan  = state.config.plan;
    std::set<const ggml_tensor *> seen;
    int64_t                       total = 0;
    if (!plong_by_blocks(&state) || !state.cache) {
        return 0;
    }
    for (const uint32_t il : state.cache->get_layer_ids()) {
        const auto          known = state.stored.find((int32_t) il);
        const ggml_tensor * k     = state.cache->get_k_storage((int32_t) il);
        const bool          taken = state.layers.count((int32_t) il) && state.layers.at((int32_t) il).empty();
        if ((int32_t) il >= plan.dense_layers && taken && known != state.stored.end() && known->second.head > 0 &&
            seen.insert(k).second) {
            const int32_t head = known->second.head;
            total += (int64_t) plong_index_bytes(
                plong_plan_index(&plan), head, (int32_t) k->ne[0] / head, state.cache->get_size(),
                state.cache->get_n_stream());
        }
    }
    return total;
}
