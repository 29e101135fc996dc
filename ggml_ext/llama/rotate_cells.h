/* rotate_cells.h - a pass over a context's K/V cache that rotates cached K. C++, internal to libllama. */
#pragma once

#include "plong_state.h"

class llama_kv_cache;

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
