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
struct llama_memory_i;
struct llama_ubatch;
class llama_io_read_i;
class llama_io_write_i;
class llama_kv_cache;
struct llm_graph_context;
class llm_graph_input_attn_kv;
class llm_graph_input_attn_kv_iswa;
class llm_graph_input_plong;

/* A constant of the graph in a buffer of its own: frequency factors [n_rot/2], or a rotation table. */
struct plong_constant {
    ggml_backend_buffer_ptr buffer;
    int64_t                 ne;
    ggml_tensor *           tensor(ggml_context * ctx, const char * name) const;
};

struct plong_layer_rope;

/* What the graph's node gets: the rotation of a layer's queries, or of its keys. */
struct plong_turn {
    const plong_layer_rope * rope  = nullptr;
    bool                     query = false; /* carries the square of the magnitude, so that cached K has none */
};

/* RoPE of one layer as its graph node says it, and the policy over it. */
struct plong_layer_rope {
    struct rotation {
        std::vector<double> f;     /* [n_rot/2] radians per position */
        std::vector<float>  table; /* PLONG_ROPE_TABLE_FLOATS; empty when the frequencies are the node's own */
        float               magnitude = 1.0f;
    };

    int32_t    n_rot    = 0;
    bool       neox     = false;
    float      base     = 0.0f;
    plong_rope policy   = {};
    plong_turn turns[2] = {}; /* of queries, of keys */

    std::map<float, rotation>       rotations; /* by factor; filled before a graph runs */
    std::shared_ptr<plong_constant> factors;   /* for ggml's own RoPE: divides the base frequencies; null: unused */
    std::shared_ptr<plong_constant> table;     /* for the op; null when the position map is absolute */

    const rotation & at(float factor); /* computes it when it is new */
};

/* A layer's K in the cache. */
struct plong_stored_k {
    std::shared_ptr<plong_layer_rope> rope;         /* null or n_rot = 0: the layer has no RoPE */
    int32_t                           head     = 0; /* dims of a head */
    int32_t                           hadamard = 0; /* K is Hadamard-rotated in blocks of this many dims; 0: no */
};

/* Shared by the context and its graphs; lives until the last of them is gone. */
struct plong_state {
    plong_config config = {};

    std::map<int32_t, std::string>    layers; /* il -> why upstream's path runs it, empty when the op does */
    std::map<llama_seq_id, llama_pos> tails;
    std::map<std::string, std::shared_ptr<plong_layer_rope>> ropes;   /* by the parameters of the node */
    std::map<int32_t, plong_stored_k>                        stored;  /* il -> its cached K */
    std::map<llama_seq_id, float>                            factors; /* of dynamic policies, where set */
    plong_stats                                              stats = {};

    bool enabled() const { return config.enabled != 0; }
    bool maps() const { return enabled() && config.rope.map != PLONG_MAP_ABSOLUTE; }
    bool scales() const { return enabled() && config.rope.freq != PLONG_FREQ_NATIVE; }
    bool dynamic() const { return enabled() && config.rope.dynamic; }

    float factor(llama_seq_id seq) const {
        const auto it = factors.find(seq);
        return dynamic() && it != factors.end() ? it->second : config.rope.factor;
    }
};

/* The state of a new context: the thread's pending configuration, used up. */
std::shared_ptr<plong_state> plong_state_create();

/* Throws when a policy cannot work on this model: after a graph was built. */
void plong_state_check(const plong_state & state, const llama_hparams & hparams);

/* Position at which a token is rotated in the graph. */
llama_pos plong_stored_pos(const plong_state * state, llama_pos pos);

/* ---- the cache (rescale.cpp); a null state is that of a cache which no policy turns ---- */

/* Tells the K/V cache with full attention in a context's memory whose it is. */
void plong_attach(plong_state * state, llama_memory_i * memory);

/* Applies the shifts of all cells to K: only cells that move are touched, so quantized ones do not wear out. False: it
 * is left to upstream. */
bool plong_shift(plong_state * state, llama_kv_cache & cache);

/* Before cells of src become dst's too. False, with a line in the log: their factors differ, nothing may be copied. */
bool plong_copy_factor(plong_state * state, const llama_kv_cache & cache, llama_seq_id src, llama_seq_id dst);

/* Saved states of dynamic policies begin with the factors of their sequences (seq -1: of all). */
void plong_write_factors(const plong_state * state, llama_io_write_i & io, llama_seq_id seq);
void plong_read_factors(plong_state * state, llama_io_read_i & io, llama_seq_id seq);

/* Whether a ubatch has a sequence whose dynamic factor is above 1: such graphs have RoPE nodes of their own. */
bool plong_is_scaled(const plong_state * state, const llama_ubatch & ubatch);

/* One layer's attention through the op. prepare() comes before K is stored and Q is Hadamard-rotated: it applies the
 * frequency policy to the layer's RoPE nodes and decides; build() then makes the node, or is not called. */
struct plong_layer {
    bool                              take   = false;
    plong_attn_params                 params = {};
    ggml_tensor *                     q      = nullptr; /* before the Hadamard transform */
    std::shared_ptr<plong_layer_rope> rope;
};

/* What upstream's build_attn() has in its hands; null where the model has no such thing. */
struct plong_tensors {
    ggml_tensor * q; /* as they come out of RoPE */
    ggml_tensor * k;
    ggml_tensor * k_rot; /* Hadamard matrix for K */
    ggml_tensor * kq_b;  /* bias of the logits */
    ggml_tensor * sinks;
    ggml_tensor * v_mla;
};

/* swa: the layer reads a sliding window only. il: the layer */
plong_layer plong_prepare(
    const llm_graph_context & graph, const plong_tensors & tensors, bool swa, float kq_scale, int il);

/* -> F32 [d_v * n_head, n_tokens], or null when the tensors turn out not to fit (recorded). q is what upstream's
 * attention would get. */
ggml_tensor * plong_build(
    const llm_graph_context & graph, llm_graph_input_attn_kv * inp, plong_layer & layer, ggml_tensor * q,
    ggml_tensor * k, ggml_tensor * v);
ggml_tensor * plong_build(
    const llm_graph_context & graph, llm_graph_input_attn_kv_iswa * inp, plong_layer & layer, ggml_tensor * q,
    ggml_tensor * k, ggml_tensor * v);
