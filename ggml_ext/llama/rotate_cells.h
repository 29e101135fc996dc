/* rotate_cells.h - a pass over a context's K/V cache that rotates cached K. C++, internal to libllama. */
#pragma once

#include "llama-kv-cache.h"
#include "plong_state.h"

/* What happens to one cell: every layer's K is rotated by n times the frequencies of a kind. */
struct plong_move {
    uint32_t cell;
    uint32_t stream;
    int64_t  n;
    int      kind;
};

/* What a pass applies: a shift (from 0) or the change from one factor to another. */
struct plong_change {
    float from; /* 0: nothing */
    float to;
};

/* The cache of the layers with full attention, or null. */
llama_kv_cache * plong_plain_cache(llama_memory_i * memory);

/* Rotates K of all layers with RoPE. The kind of a move is its index in `changes`. */
void plong_rotate_cells(
    plong_state & state, const llama_kv_cache & cache, const std::vector<plong_move> & moves,
    const std::vector<plong_change> & changes);

/* visit(cells, stream) for each stream of the cache. */
template <class F> void plong_each_stream(const llama_kv_cache & cache, F visit) {
    std::vector<bool> seen(cache.get_n_stream(), false);
    for (uint32_t s = 0; s < cache.get_n_seq_max(); s++) {
        const uint32_t stream = cache.get_stream((llama_seq_id) s);
        if (!seen[stream]) {
            seen[stream] = true;
            visit(cache.get_cells((llama_seq_id) s), stream);
        }
    }
}

/* Whether the cache of a model with M-RoPE holds parts of images: tokens whose positions differ. */
bool plong_holds_images(const llama_kv_cache & cache);
