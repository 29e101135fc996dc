/* rope_rotate.h - a node of the graph that rotates rows by a policy, in place of ggml's RoPE. */
#pragma once

#include "plong_state.h"

/* Makes the RoPE node rotate its rows by `side`, which must live as long as the graph. factors: plong_token_factors()
 * for dynamic policies, else null. Only if all backends are CPUs. */
void plong_rotate_node(
    const llm_graph_context & graph, ggml_tensor * node, ggml_tensor * factors, const plong_rope_side & side);

/* F32 [n_tokens]: the factor of each token of the ubatch. One tensor for all layers of a graph. */
ggml_tensor * plong_token_factors(const llm_graph_context & graph);
