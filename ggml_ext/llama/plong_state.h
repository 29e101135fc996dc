/*
 * plong_state.h - what a llama_context keeps for the extension, and the few functions that upstream's patched sources
 * call. C++, internal to libllama.
 */
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "ggml-cpp.h"
#include "plong_llama.h"

struct llama_hparams;
struct llm_graph_context;
class llm_graph_input_attn_kv;
class llm_graph_input_attn_kv_iswa;
class llm_graph_input_plong;

/* A constant of the graph in a buffer of its own: frequency factors [n_rot/2], or a rotation table. */
struct plong_constant {
    ggml_backend_buffer_ptr buffer;
    std::vector<float>      values;
    int64_t                 ne;
    ggml_tensor *           tensor(ggml_context * ctx, const char * name) const;
};

/* RoPE of one layer as its graph node says it, and the policy over it. */
struct plong_layer_rope {
    int32_t                         n_rot     = 0;
    bool                            neox      = false;
    float                           magnitude = 1.0f;
    std::shared_ptr<plong_constant> factors; /* divides the base frequencies; null when the policy is native */
    std::shared_ptr<plong_constant> table;   /* null when the position map is absolute */
};

/* Shared by the context and its graphs; lives until the last of them is gone. */
struct plong_state {
    plong_config config = {};

    std::map<int32_t, std::string>    layers; /* il -> why upstream's path runs it, empty when the op does */
    std::map<llama_seq_id, llama_pos> tails;
    std::map<std::string, std::shared_ptr<plong_layer_rope>> ropes; /* by the parameters of the node */
    plong_stats                                              stats = {};

    bool enabled() const { return config.enabled != 0; }
    bool maps() const { return enabled() && config.rope.map != PLONG_MAP_ABSOLUTE; }
    bool scales() const { return enabled() && config.rope.freq != PLONG_FREQ_NATIVE; }
};

/* The state of a new context: the thread's pending configuration, used up. */
std::shared_ptr<plong_state> plong_state_create();

/* Throws when a policy cannot work on this model: after a graph was built. */
void plong_state_check(const plong_state & state, const llama_hparams & hparams);

/* Position at which a token is rotated in the graph. */
llama_pos plong_stored_pos(const plong_state * state, llama_pos pos);

/* Shift of a cell's stored rotation when it moves to pos by delta. */
llama_pos plong_stored_shift(const plong_state * state, llama_pos pos, llama_pos delta);

/* Frequency factors for a K-shift of this layer, or null when the policy leaves the model's own. */
ggml_tensor * plong_shift_factors(const plong_state * state, ggml_context * ctx, int32_t n_rot, float base);

/* One layer's attention through the op. prepare() comes before K is stored and Q is Hadamard-rotated: it applies the
 * frequency policy to the layer's RoPE nodes and decides; build() then makes the node, or is not called. */
struct plong_layer {
    bool                              take   = false;
    plong_attn_params                 params = {};
    ggml_tensor *                     q      = nullptr; /* before the Hadamard transform */
    std::shared_ptr<plong_layer_rope> rope;
};

plong_layer plong_prepare(
    const llm_graph_context & graph, ggml_tensor * q, ggml_tensor * k, ggml_tensor * k_rot, ggml_tensor * kq_b,
    ggml_tensor * sinks, ggml_tensor * v_mla, bool swa, float kq_scale, int il);

/* -> F32 [d_v * n_head, n_tokens], or null when the tensors turn out not to fit (recorded). q is what upstream's
 * attention would get. */
ggml_tensor * plong_build(
    const llm_graph_context & graph, llm_graph_input_attn_kv * inp, plong_layer & layer, ggml_tensor * q,
    ggml_tensor * k, ggml_tensor * v, int il);
ggml_tensor * plong_build(
    const llm_graph_context & graph, llm_graph_input_attn_kv_iswa * inp, plong_layer & layer, ggml_tensor * q,
    ggml_tensor * k, ggml_tensor * v, int il);
