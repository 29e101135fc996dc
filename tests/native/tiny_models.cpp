/* tiny_models.cpp - the tiny random models of upstream's tests/test-llama-archs.cpp, one for each of its architectures, for
 * scripts/models_table.py.
 *
 * That file is compiled as it stands, as a private part of this one: what is not called of it is left out, so that its
 * other libraries are not needed. */
#include "common.h"
#include "log.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "gguf.h"
#include "ggml-cpp.h"
#include "llama.h"
#include "llama-cpp.h"
#include "../src/llama-arch.h"
#include "../src/llama-model-saver.h"
#include "llama-model.h"

#include <cinttypes>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <regex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {
#include "test-llama-archs.cpp"
} // namespace

constexpr uint32_t LONGEST_WINDOW = 32;
constexpr float    STDEV          = 0.2f;

static size_t give(const std::string & from, char * text, size_t n) {
    if (n > 0) {
        snprintf(text, n, "%s", from.c_str());
    }
    return from.size();
}

extern "C" {

/* A line per model, "<architecture>\t<dense or moe>\n". Returns the length. */
size_t tiny_models_list(char * text, size_t n) {
    std::string out;
    for (const llm_arch arch : llm_arch_all()) {
        for (const bool moe : { false, true }) {
            if (arch != LLM_ARCH_UNKNOWN && (moe ? moe_implemented(arch) : !moe_mandatory(arch))) {
                out += std::string(llm_arch_name(arch)) + (moe ? "\tmoe\n" : "\tdense\n");
            }
        }
    }
    return give(out, text, n);
}

/* Null: upstream refuses it; its log says why. */
llama_model * tiny_model(const char * name, bool moe, size_t seed) {
    try {
        const gguf_context_ptr keys   = get_gguf_ctx(llm_arch_from_string(name), moe);
        tensor_data_params     data   = { seed, STDEV };
        llama_model_params     params = llama_model_default_params();
        params.progress_callback      = silent_model_load_progress;
        llama_model * model           = llama_model_init_from_user(keys.get(), set_tensor_data, &data, params);
        if (model && model->hparams.n_swa > LONGEST_WINDOW) {
            model->hparams.n_swa = LONGEST_WINDOW; /* some architectures have their own, beyond any prompt of a test */
        }
        return model;
    } catch (const std::exception & e) {
        fprintf(stderr, "%s\n", e.what());
        return nullptr;
    }
}

/* What the model's attention is, in words that a comma separates. Returns the length. */
size_t tiny_model_kind(const llama_model * model, char * text, size_t n) {
    const llama_hparams & h = model->hparams;
    std::string           out;
    const auto            add = [&out](bool holds, const std::string & word) {
        if (holds) {
            out += out.empty() ? word : ", " + word;
        }
    };
    bool windows = false, states = llama_model_is_recurrent(model), sinks = false;
    for (uint32_t il = 0; il < h.n_layer(); il++) {
        windows = windows || h.is_swa(il);
        states  = states || (llama_model_is_hybrid(model) && h.is_recr(il));
        sinks   = sinks || model->layers[il].attn_sinks;
    }
    const std::string window = h.swa_type == LLAMA_SWA_TYPE_CHUNKED ? "chunks of " : "windows of ";
    add(!h.causal_attn, "not causal");
    add(h.is_mla(), "latent");
    add(windows && h.swa_type != LLAMA_SWA_TYPE_NONE, window + std::to_string(h.n_swa));
    add(sinks, "sinks");
    add(h.attn_soft_cap, "soft cap");
    add(h.use_alibi, "ALiBi");
    add(h.indexer_n_head > 0, "indexer");
    add(h.n_layer_kv_from_start >= 0 && h.n_layer_kv_from_start < (int32_t) h.n_layer(), "shared K/V");
    add(model->pos_embd, "learned positions");
    add(h.rope_type == LLAMA_ROPE_TYPE_MROPE || h.rope_type == LLAMA_ROPE_TYPE_IMROPE, "M-RoPE");
    add(states, "states");
    return give(out, text, n);
}

struct tiny_counts {
    int32_t upstream; /* attention nodes of upstream's */
    int32_t ours;
};

/* A graph's eval callback: counts the nodes that are computed. */
bool tiny_models_count(ggml_tensor * t, bool ask, void * data) {
    tiny_counts * counts = (tiny_counts *) data;
    if (ask) {
        const bool softmax = t->op == GGML_OP_SOFT_MAX && strncmp(t->name, "kq_soft_max", 11) == 0;
        counts->upstream += t->op == GGML_OP_FLASH_ATTN_EXT || softmax;
        counts->ours += t->op == GGML_OP_LONG_ATTN;
    }
    return !ask;
}
}
