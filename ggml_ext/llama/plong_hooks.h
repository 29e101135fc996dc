/* plong_hooks.h - the few functions that upstream's patched sources call. C++, internal to libllama. */
#pragma once

#include "plong_state.h"

struct llama_model;
struct llama_ubatch;
class llama_io_read_i;
class llama_io_write_i;
class llama_kv_cache;
class llm_graph_input_attn_k;
class llm_graph_input_attn_k_iswa;
class llm_graph_input_attn_kv;
class llm_graph_input_attn_kv_iswa;
class llm_graph_input_plong;
class llm_graph_result;

/* Makes the state of a new context from the thread's pending configuration, which is used up. */
std::shared_ptr<plong_state> plong_state_create();

/* ---- which layers the op takes, and a policy holds for (policy.cpp) ----------------------------------------------- */

/* To be called before a graph is built: forgets the layers of the last one. */
void plong_graph_begins(plong_state * state);

/* To be called by upstream's attention. Records layers that did not come by plong_prepare(). n_kv_max: keys that an
 * indexer chooses, or 0. */
void plong_passed(const llm_graph_context & graph, int64_t n_kv_max, int il);

/* All layers of the last graph that have attention -> why upstream computes it, or "". */
std::map<int32_t, std::string> plong_layers(const plong_state & state, const llama_model & model);

/* The same layers -> why a RoPE policy leaves their positions alone, by design, or "". */
std::map<int32_t, std::string> plong_native_layers(const plong_state & state, const llama_model & model);

/* Why the policy does not hold in the last graph, with the layers that cannot follow it, or "". */
std::string plong_policy_refusal(const plong_state & state, const llama_model & model);

/* Throws that. */
void plong_state_check(const plong_state & state, const llama_model & model);

/* ---- exact rows beside those of a plan (checks.cpp) -------------------------------------------------------------- */

/* To be called when a graph has run: adds the errors of its layers to the meter. */
void plong_measure(const llm_graph_result & graph, ggml_backend_sched_t sched);

/* ---- the index of keys (index.cpp); a null state: there is none ------------------------------------------------- */

/* To be called when a cell gets another key, and when any of them may have got one. */
void plong_touch(plong_state * state, uint32_t stream, uint32_t cell);
void plong_forget(plong_state * state);

/* Whether sequences must have whole blocks of cells for themselves: a page of the index then has the keys of one sequence,
 * at positions that begin with a multiple of its size, so that a choice does not depend on what else is in the cache. */
bool plong_by_blocks(const plong_state * state);

/* ---- the cache (shift.cpp factors.cpp saved_factors.cpp); a null state: no policy rotates K in this cache ---- */

/* Tells the K/V cache with full attention in a context's memory whose it is. */
void plong_attach(plong_state * state, llama_memory_i * memory);

/* Applies the shifts of all cells to K. Only cells that move are touched, so quantized ones do not wear out. False:
 * upstream must do it. */
bool plong_shift(plong_state * state, llama_kv_cache & cache);

/* To be called before cells of src are shared with dst. False, with a line in the log, if their factors differ and
 * nothing may be copied. */
bool plong_copy_factor(plong_state * state, const llama_kv_cache & cache, llama_seq_id src, llama_seq_id dst);

/* Saved states of dynamic policies begin with the factors of their sequences (seq -1: of all). */
void plong_write_factors(const plong_state * state, llama_io_write_i & io, llama_seq_id seq);
void plong_read_factors(plong_state * state, llama_io_read_i & io, llama_seq_id seq);

/* Whether a ubatch, or the cache of a model with M-RoPE, holds parts of images: tokens whose positions differ. Such graphs
 * are upstream's, and position maps have no meaning for them. */
bool plong_has_images(const plong_state * state, const llama_ubatch & ubatch, llama_memory_i * memory);

/* Whether a ubatch has a sequence whose dynamic factor is above 1: such graphs have RoPE nodes of their own. */
bool plong_is_scaled(const plong_state * state, const llama_ubatch & ubatch);

/* One layer's attention through the op. prepare() comes before K is stored and Q is Hadamard-rotated: it applies the
 * frequency policy to the layer's RoPE nodes and decides; build() then makes the node, or is not called. */
struct plong_layer {
    bool                              take        = false;
    bool                              swa         = false; /* it reads a sliding window only */
    plong_attn_params                 params      = {};
    ggml_tensor *                     q           = nullptr; /* before the Hadamard transform */
    ggml_tensor *                     sink_logits = nullptr;
    ggml_tensor *                     v_mla       = nullptr;
    std::shared_ptr<plong_layer_rope> rope;
};

/* What upstream's build_attn() has in its hands; null where the model has no such thing. */
struct plong_tensors {
    ggml_tensor * q; /* as they come out of RoPE */
    ggml_tensor * k;
    ggml_tensor * k_rot; /* Hadamard matrix for K */
    ggml_tensor * kq_b;  /* bias of the logits */
    ggml_tensor * sink_logits;
    ggml_tensor * v_mla; /* of multi-head latent attention: what a head multiplies its result with */
};

/* swa: the layer reads a sliding window only. */
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
ggml_tensor * plong_build(
    const llm_graph_context & graph, llm_graph_input_attn_k * inp, plong_layer & layer, ggml_tensor * q,
    ggml_tensor * k, ggml_tensor * v);
ggml_tensor * plong_build(
    const llm_graph_context & graph, llm_graph_input_attn_k_iswa * inp, plong_layer & layer, ggml_tensor * q,
    ggml_tensor * k, ggml_tensor * v);
