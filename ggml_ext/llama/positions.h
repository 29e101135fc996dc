/* positions.h - the positions of layers that follow a position map. C++, internal to libllama. */
#pragma once

#include "plong_state.h"

/* The position at which a token of such a layer is rotated before its K is stored. */
llama_pos plong_stored_pos(const plong_state * state, llama_pos pos);

/* Gives a RoPE node these positions in place of the graph's. False if its positions are not the graph's input. */
bool plong_fold_positions(const llm_graph_context & graph, ggml_tensor * node);
