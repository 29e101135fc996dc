/* config.cpp - the exported functions of plong_llama.h and the state of a context. */
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "llama-context.h"
#include "llama-hparams.h"
#include "llama-impl.h"
#include "llama-model.h"
#include "plan.h"
#include "plong_hooks.h"

static thread_local std::unique_ptr<plong_config> pending;

static const char * check(const plong_config & config) {
    if (config.abi != PLONG_ABI_VERSION) {
        return "the Python layer and the native library have different versions: reinstall pyllama-long";
    }
    if (!config.enabled) {
        return nullptr;
    }
    const char * err = plong_plan_check(&config.plan);
    return err ? err : plong_rope_check(&config.rope);
}

std::shared_ptr<plong_state> plong_state_create() {
    auto state = std::make_shared<plong_state>();
    if (pending) {
        state->config = *pending;
        pending.reset();
        if (const char * err = check(state->config)) {
            throw std::runtime_error(err);
        }
    }
    return state;
}

static size_t write_layers(const std::map<int32_t, std::string> & layers, char * buf, size_t n) {
    std::string text;
    for (const auto & [il, reason] : layers) {
        text += std::to_string(il) + "\t" + reason + "\n";
    }
    if (n > 0) {
        snprintf(buf, n, "%s", text.c_str());
    }
    return text.size();
}

bool plong_is_scaled(const plong_state * state, const llama_ubatch & ubatch) {
    if (!state || !state->dynamic() || !ubatch.seq_id) {
        return false;
    }
    for (uint32_t i = 0; i < ubatch.n_tokens; i++) {
        if (state->factor(ubatch.seq_id[i][0]) != 1.0f) {
            return true;
        }
    }
    return false;
}

extern "C" {

void plong_llama_configure_next(const plong_config * config) {
    pending = config ? std::make_unique<plong_config>(*config) : nullptr;
}

int32_t plong_llama_configure(llama_context * ctx, const plong_config * config, char * err, size_t n_err) {
    const auto fail = [&](const char * message) {
        snprintf(err, n_err, "%s", message);
        return -1;
    };
    plong_config wanted = {};
    wanted.abi          = PLONG_ABI_VERSION;
    if (config) {
        wanted = *config;
    }
    if (const char * message = check(wanted)) {
        return fail(message);
    }
    plong_state & state    = *ctx->get_cparams().plong;
    const bool    was_rope = state.maps() || state.scales();
    const bool    is_rope =
        wanted.enabled && (wanted.rope.map != PLONG_MAP_ABSOLUTE || wanted.rope.freq != PLONG_FREQ_NATIVE);
    const bool other_rope =
        state.enabled() != (wanted.enabled != 0) || memcmp(&state.config.rope, &wanted.rope, sizeof(plong_rope)) != 0;
    if ((was_rope || is_rope) && other_rope) {
        for (uint32_t s = 0; s < ctx->get_cparams().n_seq_max; s++) {
            if (llama_memory_seq_pos_max(llama_get_memory(ctx), (llama_seq_id) s) >= 0) {
                return fail(
                    "the RoPE policy can only change while the KV cache is empty: call reset(clear=True) first");
            }
        }
    }
    const plong_config before         = state.config;
    const auto         layers_before  = state.layers;
    const auto         factors_before = state.factors;
    state.config                      = wanted;
    state.layers.clear();
    state.ropes.clear();
    state.stored.clear();
    plong_forget(&state); /* other layers may choose now, whose indexes have nothing yet */
    if (plong_plan_index(&wanted.plan) != plong_plan_index(&before.plan)) {
        state.indexes.clear();
    }
    if (other_rope) {
        state.factors.clear();
    }
    try {
        ctx->plong_changed();
        plong_state_check(state, ctx->get_model());
    } catch (const std::exception & e) {
        state.config  = before;
        state.layers  = layers_before;
        state.factors = factors_before;
        state.ropes.clear();
        state.stored.clear();
        ctx->plong_changed();
        return fail(e.what());
    }
    return 0;
}

void plong_llama_set_tail(llama_context * ctx, llama_seq_id seq, llama_pos pos) {
    auto & tails = ctx->get_cparams().plong->tails;
    if (pos < 0) {
        tails.erase(seq);
    } else {
        tails[seq] = pos;
    }
}

void plong_llama_stats(const llama_context * ctx, plong_stats * stats) { *stats = ctx->get_cparams().plong->stats; }

void plong_llama_stats_reset(llama_context * ctx) {
    ctx->get_cparams().plong->stats = {};
    ctx->get_cparams().plong->meter.clear();
}

size_t plong_llama_layers(const llama_context * ctx, char * buf, size_t n) {
    const plong_state & state  = *ctx->get_cparams().plong;
    auto                layers = plong_layers(state, ctx->get_model());
    for (auto & [il, reason] : layers) {
        const auto window = state.windows.find(il);
        reason += "\t" + (window == state.windows.end() ? "" : window->second);
    }
    return write_layers(layers, buf, n);
}

size_t plong_llama_native_layers(const llama_context * ctx, char * buf, size_t n) {
    return write_layers(plong_native_layers(*ctx->get_cparams().plong, ctx->get_model()), buf, n);
}
}
