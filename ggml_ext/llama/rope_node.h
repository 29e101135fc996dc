/* rope_node.h - finds the RoPE node behind a query or key, and applies the frequency rule to it. */
#pragma once

#include "plong_state.h"

/* Follows q and k back to their RoPE nodes and changes them as the policy wants. Null, with a reason, if they cannot be
 * found or do not agree; a layer without RoPE gives n_rot = 0. A layer without K (null) reads that of another layer, whose
 * RoPE is `shared`. */
std::shared_ptr<plong_layer_rope> plong_rope_of(
    const llm_graph_context & graph, plong_state & state, ggml_tensor * q, ggml_tensor * k,
    const std::shared_ptr<plong_layer_rope> & shared, std::string & reason);
