/* graph.cpp - the hooks in upstream's graph: which layers the op takes, and the op's inputs for each ubatch. */
#include <algorithm>
#include <functional>

#include "cells.h"
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-hparams.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "plan.h"
#include "plong_state.h"
#include "rope_node.h"

namespace {

/* Sequences, query groups and cell runs of one ubatch. */
struct batch_parts {
    std::vector<plong_slot>  slots;
    std::vector<plong_group> groups;
    std::vector<plong_run>   runs;
};

void collect(
    const plong_state & state, const llama_kv_cache_context & mctx, const llama_ubatch & ubatch, batch_parts & out) {
    std::map<llama_seq_id, int32_t>                             slot_of, n_of;
    std::map<const llama_kv_cells *, std::vector<llama_seq_id>> seqs_of;
    for (uint32_t i = 0; i < ubatch.n_tokens; i++) {
        const llama_seq_id seq = ubatch.seq_id[i][0];
        if (n_of[seq]++ == 0) {
            seqs_of[&mctx.plong_cells(seq)].push_back(seq);
        }
    }
    for (const auto & [cells, seqs] : seqs_of) {
        const auto runs = plong_runs(*cells, mctx.get_n_kv(), seqs);
        for (size_t s = 0; s < seqs.size(); s++) {
            slot_of[seqs[s]]    = (int32_t) out.slots.size();
            const int32_t begin = (int32_t) out.runs.size();
            out.runs.insert(out.runs.end(), runs[s].begin(), runs[s].end());
            out.slots.push_back({ (int32_t) mctx.plong_stream(seqs[s]), begin, (int32_t) out.runs.size() });
        }
    }
    for (uint32_t i = 0; i < ubatch.n_tokens; i++) {
        const llama_seq_id seq   = ubatch.seq_id[i][0];
        const llama_pos    pos   = ubatch.pos[i];
        const int32_t      slot  = slot_of[seq];
        const auto         tail  = state.tails.find(seq);
        const int          phase = tail != state.tails.end() ? pos >= tail->second : n_of[seq] == 1;
        if (!out.groups.empty()) {
            plong_group & last = out.groups.back();
            if (last.slot == slot && last.phase == phase && last.pos + last.n == pos) {
                last.n++;
                continue;
            }
        }
        out.groups.push_back({ slot, phase, (int32_t) i, 1, pos });
    }
}

} // namespace

/* The op's batch tensor. One for all layers of a graph. */
class llm_graph_input_plong : public llm_graph_input_i {
  public:
    using mctx_fn = std::function<const llama_kv_cache_context *()>;

    llm_graph_input_plong(std::shared_ptr<plong_state> state, mctx_fn mctx, int32_t n_head)
        : state(std::move(state)), mctx(std::move(mctx)), n_head(n_head) {}

    /* Words wanted for the ubatch, with room to grow before the graph must be built anew. */
    int64_t words_for(const llama_ubatch & ubatch) {
        parts = {};
        if (ubatch.pos && ubatch.seq_id) {
            collect(*state, *mctx(), ubatch, parts);
            collected = true;
        }
        n_slots  = std::max<int32_t>(parts.slots.size(), ubatch.n_seqs_unq);
        n_groups = ubatch.n_tokens;
        n_runs   = 64;
        while (n_runs < (int32_t) parts.runs.size()) {
            n_runs *= 2;
        }
        return plong_batch_words(n_slots, n_groups, n_runs);
    }

    void set_input(const llama_ubatch * ubatch) override {
        if (!batch->buffer) {
            return;
        }
        if (!collected) {
            parts = {};
            collect(*state, *mctx(), *ubatch, parts);
        }
        collected = false;
        GGML_ASSERT((int32_t) parts.slots.size() <= n_slots && (int32_t) parts.runs.size() <= n_runs);

        plong_batch head = {};
        head.n_slots     = parts.slots.size();
        head.n_groups    = parts.groups.size();
        head.n_runs      = parts.runs.size();
        head.n_tokens    = ubatch->n_tokens;
        head.precision   = state->config.precision;
        head.plan        = state->config.plan;
        head.rope        = state->config.rope;
        size_t     at    = 0;
        const auto put   = [&](const void * data, size_t size) {
            ggml_backend_tensor_set(batch, data, at, size);
            at += size;
        };
        put(&head, sizeof(head));
        put(parts.slots.data(), parts.slots.size() * sizeof(plong_slot));
        put(parts.groups.data(), parts.groups.size() * sizeof(plong_group));
        put(parts.runs.data(), parts.runs.size() * sizeof(plong_run));
        count();
    }

    bool can_reuse(const llm_graph_params & params) override {
        if (params.ubatch.n_tokens != (uint32_t) n_groups) {
            return false;
        }
        parts = {};
        collect(*state, *mctx(), params.ubatch, parts);
        collected = true;
        return (int32_t) parts.slots.size() <= n_slots && (int32_t) parts.runs.size() <= n_runs;
    }

    ggml_tensor * batch = nullptr; /* I32 [words] */

  private:
    /* Keys are counted by position: a hole in the cache counts as read. */
    void count() {
        state->stats.n_runs += (int64_t) parts.runs.size();
        int64_t n_dense = 0, n_taken = 0;
        for (const auto & [il, reason] : state->layers) {
            if (reason.empty()) {
                n_taken++;
                n_dense += il < state->config.plan.dense_layers;
            }
        }
        for (const plong_group & g : parts.groups) {
            const plong_phase & phase = state->config.plan.phase[g.phase];
            for (int32_t p = g.pos; p < g.pos + g.n; p++) {
                const int64_t visible = (int64_t) p + 1;
                int64_t       read    = 0;
                const int32_t n_kinds = phase.n_branches > 0 ? n_head : 1;
                for (int32_t h = 0; h < n_kinds; h++) {
                    read += plong_phase_cost(&phase, p, h);
                }
                read *= n_head / n_kinds;
                state->stats.keys_read += read * (n_taken - n_dense) + visible * n_head * n_dense;
                state->stats.keys_visible += visible * n_head * n_taken;
                state->stats.n_queries += n_head * n_taken;
                state->stats.n_tokens++;
            }
        }
    }

    std::shared_ptr<plong_state> state;
    mctx_fn                      mctx;
    int32_t                      n_head;
    int32_t                      n_slots = 0, n_groups = 0, n_runs = 0; /* room in `batch` */
    batch_parts                  parts;
    bool                         collected = false; /* parts already describe the ubatch that set_input() will get */
};

/* ---- which layers --------------------------------------------------------------------------------------------- */

static std::string refusal(const llm_graph_context & graph, const plong_tensors & tensors, bool swa) {
    if (swa) {
        return "sliding-window layer: upstream's cache keeps only its window";
    }
    if (graph.cparams.training) {
        return "training";
    }
    if (!graph.cparams.causal_attn) {
        return "attention is not causal";
    }
    if (!graph.cparams.flash_attn) {
        return "flash attention is off, so V is stored transposed";
    }
    if (tensors.kq_b) {
        return "the model adds a bias to the logits";
    }
    if (tensors.sinks) {
        return "the model has attention sink tensors";
    }
    if (tensors.v_mla) {
        return "multi-head latent attention";
    }
    if (graph.hparams.attn_soft_cap) {
        return "the model caps its logits";
    }
    if (graph.rope_type == LLAMA_ROPE_TYPE_MROPE || graph.rope_type == LLAMA_ROPE_TYPE_IMROPE ||
        graph.rope_type == LLAMA_ROPE_TYPE_VISION) {
        return "the model has several positions per token (M-RoPE)";
    }
    if (graph.arch == LLM_ARCH_GROK) {
        return "the model squashes its logits";
    }
    return "";
}

plong_layer plong_prepare(
    const llm_graph_context & graph, const plong_tensors & tensors, bool swa, float kq_scale, int il) {
    ggml_tensor *const q = tensors.q, *const k = tensors.k, *const k_rot = tensors.k_rot;
    plong_layer         layer;
    plong_state * const state = graph.cparams.plong.get();
    if (!state || !state->enabled()) {
        return layer;
    }
    std::string reason = refusal(graph, tensors, swa);
    if (!swa) {
        std::string rope_reason;
        layer.rope        = plong_rope_of(graph, *state, q, k, rope_reason);
        state->stored[il] = { layer.rope, k ? (int32_t) k->ne[0] : 0, k_rot ? (int32_t) k_rot->ne[0] : 0 };
        if (reason.empty() && (state->maps() || state->scales())) {
            reason = rope_reason;
        }
    }
    state->layers[il] = reason;
    if (!reason.empty()) {
        return layer;
    }
    layer.take            = true;
    layer.q               = q;
    layer.params.scale    = kq_scale;
    layer.params.max_bias = graph.hparams.use_alibi ? graph.hparams.f_max_alibi_bias : 0.0f;
    layer.params.layer    = il;
    layer.params.n_rot    = layer.rope && state->maps() ? layer.rope->n_rot : 0;
    layer.params.neox     = layer.rope && layer.rope->neox;
    layer.params.hadamard = k_rot && layer.params.n_rot > 0 ? (int32_t) k_rot->ne[0] : 0;
    return layer;
}

static ggml_tensor * build(
    const llm_graph_context & graph, llm_graph_input_plong *& input, llm_graph_input_plong::mctx_fn mctx,
    plong_layer & layer, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v) {
    const auto &  state = graph.cparams.plong;
    const int32_t il    = layer.params.layer;
    if (layer.params.hadamard) {
        q = layer.q;
    }
    if (const char * reason = plong_attn_supports(q, k, v, &layer.params)) {
        state->layers[il] = reason;
        return nullptr;
    }
    if (!input) {
        auto fresh   = std::make_unique<llm_graph_input_plong>(state, std::move(mctx), (int32_t) q->ne[1]);
        fresh->batch = ggml_new_tensor_1d(graph.ctx0, GGML_TYPE_I32, fresh->words_for(graph.ubatch));
        ggml_set_input(fresh->batch);
        ggml_set_name(fresh->batch, "plong_batch");
        input = static_cast<llm_graph_input_plong *>(graph.res->add_input(std::move(fresh)));
    }
    ggml_tensor * table = layer.params.n_rot > 0 ? layer.rope->table->tensor(graph.ctx0, "plong_table") : nullptr;
    ggml_tensor * cur   = ggml_long_attn(graph.ctx0, q, k, v, input->batch, table, &layer.params);
    graph.cb(cur, "long_attn", il);
    return ggml_reshape_2d(graph.ctx0, cur, cur->ne[0] * cur->ne[1], cur->ne[2]);
}

ggml_tensor * plong_build(
    const llm_graph_context & graph, llm_graph_input_attn_kv * inp, plong_layer & layer, ggml_tensor * q,
    ggml_tensor * k, ggml_tensor * v) {
    return build(graph, inp->plong, [inp] { return inp->mctx; }, layer, q, k, v);
}

ggml_tensor * plong_build(
    const llm_graph_context & graph, llm_graph_input_attn_kv_iswa * inp, plong_layer & layer, ggml_tensor * q,
    ggml_tensor * k, ggml_tensor * v) {
    return build(graph, inp->plong, [inp] { return inp->mctx->get_base(); }, layer, q, k, v);
}
