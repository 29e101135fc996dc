/* graph.cpp - the hooks in upstream's graph: which layers the op takes, and its node in them. */
#include "index.h"
#include "input.h"
#include "llama-context.h"
#include "llama-hparams.h"
#include "llama-kv-cache-iswa.h"
#include "plong_hooks.h"
#include "rope_node.h"

/* The backend of a layer: that of the device which holds its keys. Null: one that is unknown to the op. */
static const plong_backend * backend_of(const ggml_tensor * k, std::string & name) {
    const ggml_backend_buffer_t buffer = k->view_src ? k->view_src->buffer : k->buffer;
    const ggml_backend_dev_t    device =
        buffer ? ggml_backend_buft_get_device(ggml_backend_buffer_get_type(buffer)) : nullptr;
    name = device ? ggml_backend_reg_name(ggml_backend_dev_backend_reg(device)) : plong_cpu_backend.name;
    for (const plong_backend * backend : { &plong_cpu_backend, &plong_cuda_backend, &plong_metal_backend }) {
        if (name == backend->name) {
            return backend;
        }
    }
    return nullptr;
}

static std::string refusal(const llm_graph_context & graph, const plong_tensors & tensors) {
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
    if (graph.rope_type == LLAMA_ROPE_TYPE_VISION) {
        return "the model has positions of images only";
    }
    if (graph.cparams.plong_images) {
        return "the batch or the cache holds images, whose tokens have several positions (M-RoPE)";
    }
    if (graph.arch == LLM_ARCH_GROK) {
        return "the model squashes its logits";
    }
    return "";
}

/* What is known of the K that a layer reads. Layers without one of their own read that of another layer. */
static plong_stored_k read_by(
    const llm_graph_context & graph, plong_state & state, const plong_tensors & tensors, int il) {
    plong_stored_k out;
    if (tensors.k) {
        out.head     = (int32_t) tensors.k->ne[0];
        out.hadamard = tensors.k_rot ? (int32_t) tensors.k_rot->ne[0] : 0;
    } else {
        out.unrotated = "its keys are those of another context";
        for (const uint32_t other : state.cache ? state.cache->get_layer_ids() : std::vector<uint32_t>()) {
            const auto known = state.stored.find((int32_t) other);
            if ((int) other != il && known != state.stored.end() &&
                state.cache->get_k_storage((int32_t) other) == state.cache->get_k_storage(il)) {
                out = known->second;
            }
        }
    }
    if (out.unrotated.empty()) {
        out.rope = plong_rope_of(graph, state, tensors.q, tensors.k, out.rope, out.unrotated);
    }
    return out;
}

plong_layer plong_prepare(
    const llm_graph_context & graph, const plong_tensors & tensors, bool swa, float kq_scale, int il) {
    plong_layer         layer;
    plong_state * const state = graph.cparams.plong.get();
    if (!state || !state->enabled()) {
        return layer;
    }
    std::string reason = refusal(graph, tensors);
    if (!swa) {
        const plong_stored_k stored = read_by(graph, *state, tensors, il);
        layer.rope                  = stored.rope;
        if (reason.empty() && (state->maps() || state->scales())) {
            reason = stored.unrotated;
        }
        state->stored[il] = stored;
    }
    state->layers[il] = reason;
    if (swa) {
        state->windows[il] = plong_window_text(graph.hparams);
    }
    if (!reason.empty()) {
        return layer;
    }
    layer.take             = true;
    layer.swa              = swa;
    layer.q                = tensors.q;
    layer.sink_logits      = tensors.sink_logits;
    layer.v_mla            = tensors.v_mla;
    layer.params.scale     = kq_scale;
    layer.params.max_bias  = graph.hparams.use_alibi ? graph.hparams.f_max_alibi_bias : 0.0f;
    layer.params.soft_cap  = graph.hparams.attn_soft_cap ? graph.hparams.f_attn_logit_softcapping : 0.0f;
    layer.params.layer     = il;
    layer.params.n_rot     = layer.rope && state->maps() ? layer.rope->n_rot : 0;
    layer.params.neox      = layer.rope && layer.rope->neox;
    layer.params.rot_first = layer.params.n_rot > 0 ? layer.rope->first : 0;
    layer.params.hadamard  = tensors.k_rot && layer.params.n_rot > 0 ? (int32_t) tensors.k_rot->ne[0] : 0;
    return layer;
}

/* Where a layer's op finds its inputs. */
struct input_place {
    llm_graph_input_plong *&       input; /* null until a layer needs it */
    plong_scope                    scope;
    llm_graph_input_plong::mctx_fn mctx;
    bool                           first; /* of the graph's inputs */
};

/* Rows of a tensor [d, heads, tokens] as [d * heads, tokens]. */
static ggml_tensor * as_rows(ggml_context * ctx, ggml_tensor * x) {
    return ggml_reshape_2d(ctx, ggml_is_contiguous(x) ? x : ggml_cont(ctx, x), x->ne[0] * x->ne[1], x->ne[2]);
}

/* What a layer attends with. */
struct heads {
    ggml_tensor *q, *k, *v;
};

/* The exact results [d_v, n_head, checks + 1] of the ubatch's checks; those of the last row are zeros. */
static ggml_tensor * check(
    const llm_graph_context & graph, llm_graph_input_plong & input, const plong_layer & layer,
    const plong_shape & shape, const plong_backend & backend, const heads & x) {
    ggml_context *     ctx    = graph.ctx0;
    ggml_tensor *      rows   = ggml_get_rows(ctx, as_rows(ctx, x.q), input.check_rows);
    const plong_inputs inputs = {
        input.check_batch,
        input.check_work(ctx, shape, backend),
        layer.params.n_rot > 0 ? layer.rope->table->tensor(ctx, "plong_table") : nullptr,
        layer.sink_logits,
        nullptr,
        nullptr,
        nullptr,
    };
    ggml_tensor * q   = ggml_reshape_3d(ctx, rows, x.q->ne[0], x.q->ne[1], rows->ne[1]);
    ggml_tensor * out = ggml_long_attn(ctx, q, x.k, x.v, &inputs, &layer.params);
    graph.cb(out, "long_check", layer.params.layer);
    return out;
}

/* Adds to rows what the plan left out of their checks, and keeps that for the meter. */
static ggml_tensor * correct(
    const llm_graph_context & graph, llm_graph_input_plong & input, ggml_tensor * exact, ggml_tensor * cur, int il) {
    ggml_context * ctx   = graph.ctx0;
    ggml_tensor *  dense = as_rows(ctx, exact), *sparse = as_rows(ctx, cur);
    ggml_tensor *  every = ggml_sub(ctx, dense, ggml_get_rows(ctx, sparse, input.check_rows));
    const int64_t  n     = input.checks();
    /* Rows without a check add the zeros of the last exact row: a difference times 0 may be NaN. */
    ggml_tensor * left = ggml_concat(
        ctx, ggml_view_2d(ctx, every, every->ne[0], n, every->nb[1], 0),
        ggml_view_2d(ctx, dense, dense->ne[0], 1, dense->nb[1], (size_t) n * dense->nb[1]), 1);
    ggml_set_output(exact);
    ggml_set_output(left);
    input.add_checked({ il, (int32_t) cur->ne[1], left, dense });
    ggml_tensor * out = ggml_add(ctx, sparse, ggml_get_rows(ctx, left, input.check_of));
    graph.cb(out, "long_corrected", il);
    return ggml_reshape_3d(ctx, out, cur->ne[0], cur->ne[1], cur->ne[2]);
}

static ggml_tensor * build(
    const llm_graph_context & graph, input_place place, plong_layer & layer, ggml_tensor * q, ggml_tensor * k,
    ggml_tensor * v) {
    const auto & state = graph.cparams.plong;
    const int    il    = layer.params.layer;
    q                  = layer.params.hadamard ? layer.q : q;
    std::string           device;
    const plong_backend * backend = backend_of(k, device);
    const char *          reason  = backend ? plong_backend_supports(backend, q, k, v, &layer.params) : nullptr;
    if (!backend || reason) {
        state->layers[il] = backend ? reason : "no attention kernels for " + device;
        return nullptr;
    }
    auto *& input = place.input;
    if (!input) {
        auto fresh =
            std::make_unique<llm_graph_input_plong>(graph, place.scope, std::move(place.mctx), (int32_t) q->ne[1]);
        fresh->counts_tokens = place.first;
        input                = static_cast<llm_graph_input_plong *>(graph.res->add_input(std::move(fresh)));
    }
    const plong_shape shape = {
        (int32_t) k->ne[0], (int32_t) v->ne[0], (int32_t) q->ne[1], (int32_t) k->ne[1], input->is_dense(il),
    };
    ggml_tensor * const exact =
        !shape.dense && input->checks() > 0 ? check(graph, *input, layer, shape, *backend, { q, k, v }) : nullptr;
    plong_inputs inputs = {
        input->batch,
        input->work(graph.ctx0, shape, *backend),
        layer.params.n_rot > 0 ? layer.rope->table->tensor(graph.ctx0, "plong_table") : nullptr,
        layer.sink_logits,
        nullptr,
        nullptr,
        state->config.plan.error > 0.0f ? exact : nullptr,
    };
    if (const int64_t words = input->choice_words(shape, *backend); words > 0) {
        if (plong_plan_wants_index(&state->config.plan)) {
            const llama_kv_cache & cache = *state->cache;
            const plong_index &    index = plong_index_of(*state, k, cache.get_size(), cache.get_n_stream());
            inputs.index                 = index.tensor(graph.ctx0, input->first_stream(), k->ne[3]);
        }
        inputs.choices = ggml_long_choose(graph.ctx0, q, k, v, &inputs, &layer.params, words);
        graph.cb(inputs.choices, "long_choose", il);
        ggml_build_forward_expand(graph.gf, input->add_chosen(graph.ctx0, inputs.choices, il, shape, *backend));
    }
    if (state->recording) {
        if (inputs.choices) {
            ggml_set_output(inputs.choices);
        }
        input->record({ il, shape, backend, inputs.choices });
    }
    ggml_tensor * cur = ggml_long_attn(graph.ctx0, q, k, v, &inputs, &layer.params);
    graph.cb(cur, "long_attn", il);
    if (exact) {
        cur = correct(graph, *input, exact, cur, il);
    }
    if (layer.v_mla) { /* as upstream does it */
        cur = ggml_mul_mat(graph.ctx0, layer.v_mla, ggml_permute(graph.ctx0, cur, 0, 2, 1, 3));
        graph.cb(cur, "fattn_mla", il);
        cur = ggml_cont(graph.ctx0, ggml_permute(graph.ctx0, cur, 0, 2, 1, 3));
    }
    return ggml_reshape_2d(graph.ctx0, cur, cur->ne[0] * cur->ne[1], cur->ne[2]);
}

template <class Input>
static ggml_tensor * build_iswa(
    const llm_graph_context & graph, Input & inp, plong_layer & layer, ggml_tensor * q, ggml_tensor * k,
    ggml_tensor * v) {
    const auto full   = [&inp] { return inp.mctx->get_base(); };
    const auto window = [&inp] { return inp.mctx->get_swa(); };
    if (layer.swa) {
        return build(graph, { inp.plong_swa, PLONG_WINDOW, window, !inp.plong }, layer, q, k, v);
    }
    return build(graph, { inp.plong, PLONG_FULL, full, !inp.plong_swa }, layer, q, k, v);
}

ggml_tensor * plong_build(
    const llm_graph_context & graph, llm_graph_input_attn_kv * inp, plong_layer & layer, ggml_tensor * q,
    ggml_tensor * k, ggml_tensor * v) {
    const auto mctx = [inp] { return inp->mctx; };
    return build(graph, { inp->plong, PLONG_FULL, mctx, true }, layer, q, k, v);
}

ggml_tensor * plong_build(
    const llm_graph_context & graph, llm_graph_input_attn_kv_iswa * inp, plong_layer & layer, ggml_tensor * q,
    ggml_tensor * k, ggml_tensor * v) {
    return build_iswa(graph, *inp, layer, q, k, v);
}

ggml_tensor * plong_build(
    const llm_graph_context & graph, llm_graph_input_attn_k * inp, plong_layer & layer, ggml_tensor * q,
    ggml_tensor * k, ggml_tensor * v) {
    const auto mctx = [inp] { return inp->mctx; };
    return build(graph, { inp->plong, layer.swa ? PLONG_WINDOW : PLONG_FULL, mctx, true }, layer, q, k, v);
}

ggml_tensor * plong_build(
    const llm_graph_context & graph, llm_graph_input_attn_k_iswa * inp, plong_layer & layer, ggml_tensor * q,
    ggml_tensor * k, ggml_tensor * v) {
    return build_iswa(graph, *inp, layer, q, k, v);
}
