/* rope_node.h - finds the RoPE node behind a query or key, and applies the frequency policy to it. */
#pragma once

#include "plong_state.h"

/* Walks from q and k back to their RoPE nodes and, under a frequency policy, changes them. Null, with a reason, when
 * they cannot be found or do not agree; a layer without RoPE gives n_rot = 0. */
std::shared_ptr<plong_layer_rope> plong_rope_of(
    const llm_graph_context & graph, plong_state & state, ggml_tensor * q, ggml_tensor * k, std::string & reason);
