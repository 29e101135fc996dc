/* shift.cpp - the cache of a context that belongs to the extension, and shifts of its cells. */
#include "llama-kv-cache.h"
#include "plong_hooks.h"
#include "positions.h"
#include "rotate_cells.h"

void plong_attach(plong_state * state, llama_memory_i * memory) {
    if (auto * cache = plong_plain_cache(memory)) {
        cache->plong = state;
        state->cache = cache;
    }
}

bool plong_shift(plong_state * state, llama_kv_cache & cache) {
    if (!state || !state->enabled()) {
        return false;
    }
    if (!state->maps() && !state->scales()) {
        for (const uint32_t il : cache.get_layer_ids()) { /* upstream's pass does on other devices */
            const auto found = state->stored.find((int32_t) il);
            if (found == state->stored.end() || !found->second.rope ||
                !ggml_backend_buffer_is_host(cache.get_k_storage(il)->buffer)) {
                return false;
            }
        }
    }
    std::vector<plong_move>   moves;
    std::vector<plong_change> changes;
    std::map<float, int>      kind_of;
    plong_each_stream(cache, [&](const llama_kv_cells & cells, uint32_t stream) {
        for (uint32_t i = 0; i < cells.size(); i++) {
            if (cells.is_empty(i) || cells.get_shift(i) == 0) {
                continue;
            }
            llama_seq_id seq = 0;
            while (!cells.seq_has(i, seq)) {
                seq++;
            }
            const llama_pos pos = cells.pos_get(i), before = pos - cells.get_shift(i);
            const int64_t   n        = (int64_t) plong_stored_pos(state, pos) - plong_stored_pos(state, before);
            const auto [kind, fresh] = kind_of.emplace(state->factor(seq), (int) changes.size());
            if (fresh) {
                changes.push_back({ 0.0f, kind->first });
            }
            if (n != 0) {
                moves.push_back({ i, stream, n, kind->second });
            }
        }
    });
    plong_rotate_cells(*state, cache, moves, changes);
    return true;
}
