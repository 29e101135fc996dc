/* policy.cpp - which layers the op takes and a RoPE policy holds for; a policy that some layer cannot follow is refused. */
#include <algorithm>
#include <stdexcept>

#include "llama-graph.h"
#include "llama-hparams.h"
#include "llama-model.h"
#include "plong_hooks.h"

namespace {

bool is_window(const llama_hparams & hparams, int32_t il) {
    return il < (int32_t) hparams.n_layer_all && hparams.is_swa((uint32_t) il);
}

/* "layers 0-4, 6 (a reason); layer 5 (another)" */
std::string name_layers(const std::map<int32_t, std::string> & reasons) {
    std::vector<std::pair<std::string, std::vector<int32_t>>> groups;
    for (const auto & [il, reason] : reasons) {
        auto group = std::find_if(groups.begin(), groups.end(), [&](const auto & g) { return g.first == reason; });
        if (group == groups.end()) {
            group = groups.insert(groups.end(), { reason, {} });
        }
        group->second.push_back(il);
    }
    std::string out;
    for (const auto & [reason, layers] : groups) {
        out += out.empty() ? "" : "; ";
        out += layers.size() > 1 ? "layers " : "layer ";
        for (size_t i = 0; i < layers.size(); i++) {
            const size_t begin = i;
            while (i + 1 < layers.size() && layers[i + 1] == layers[i] + 1) {
                i++;
            }
            out += (begin > 0 ? ", " : "") + std::to_string(layers[begin]);
            out += i > begin ? "-" + std::to_string(layers[i]) : "";
        }
        out += " (" + reason + ")";
    }
    return out;
}

/* Why the rotation of a layer cannot be changed, or "". */
std::string unrotated(const plong_state & state, int32_t il, const std::string & passed) {
    const auto stored = state.stored.find(il);
    return stored == state.stored.end() ? passed : stored->second.unrotated;
}

bool has_rope(const plong_state & state, int32_t il) {
    const auto stored = state.stored.find(il);
    return stored == state.stored.end() || !stored->second.rope || stored->second.rope->n_rot > 0;
}

} // namespace

void plong_graph_begins(plong_state * state) {
    if (state) {
        state->layers.clear();
        state->windows.clear();
    }
}

void plong_passed(const llm_graph_context & graph, int64_t n_kv_max, int il) {
    plong_state * const state = graph.cparams.plong.get();
    if (!state || !state->enabled() || state->layers.count(il)) { /* plong_prepare() was asked about the layer */
        return;
    }
    const char * reason = "attention of a kind that the op does not know";
    if (!graph.mctx) {
        reason = "attention without a K/V cache";
    } else if (n_kv_max > 0) {
        reason = "the model's own indexer chooses the keys";
    }
    state->stored.erase(il);
    state->layers[il] = reason;
}

std::map<int32_t, std::string> plong_layers(const plong_state & state, const llama_model & model) {
    auto out = state.layers;
    if (!state.enabled()) {
        return out;
    }
    const llama_hparams & hparams = model.hparams;
    const int32_t         n       = (int32_t) (hparams.dec_n_layer > 0 ? hparams.dec_n_layer : hparams.n_layer());
    if (!out.empty() && out.rbegin()->first >= n) { /* a graph of the layers that predict further tokens */
        return out;
    }
    for (int32_t il = 0; il < std::min(n, (int32_t) model.layers.size()); il++) {
        if (!hparams.is_recr(il) && hparams.n_head_kv(il) > 0 && model.layers[il].wo) {
            out.emplace(il, "attention of the model's own, without llama.cpp's common function");
        }
    }
    return out;
}

std::map<int32_t, std::string> plong_native_layers(const plong_state & state, const llama_model & model) {
    const bool                     chunks = model.hparams.swa_type == LLAMA_SWA_TYPE_CHUNKED;
    std::map<int32_t, std::string> out;
    for (const auto & [il, reason] : plong_layers(state, model)) {
        const char * window = chunks ? "attention in chunks" : "sliding window";
        out[il]             = is_window(model.hparams, il) ? window : has_rope(state, il) ? "" : "no RoPE";
    }
    return out;
}

std::string plong_policy_refusal(const plong_state & state, const llama_model & model) {
    const bool logn = state.enabled() && state.config.rope.logn;
    if (!state.maps() && !state.scales() && !logn) {
        return "";
    }
    if ((state.maps() || state.scales()) && model.hparams.rope_type == LLAMA_ROPE_TYPE_NONE) {
        return "this RoPE policy needs a model with RoPE, and this one has none: use rope=\"native\"";
    }
    const auto layers = plong_layers(state, model);
    if (layers.empty()) {
        return "this RoPE policy needs attention layers, and this model has none: use rope=\"native\"";
    }
    std::map<int32_t, std::string> lost;
    int32_t                        n_held = 0;
    bool                           scales = true; /* whether a frequency rule alone would hold for all layers */
    for (const auto & [il, reason] : layers) {
        if (is_window(model.hparams, il)) {
            continue;
        }
        std::string why = state.maps() || state.scales() ? unrotated(state, il, reason) : "";
        scales          = scales && unrotated(state, il, reason).empty();
        if (why.empty() && (logn || (state.maps() && has_rope(state, il)))) { /* the op does these */
            why = reason;
        }
        if (!why.empty()) {
            lost[il] = why;
        }
        n_held += why.empty() && (logn || has_rope(state, il));
    }
    if (!lost.empty()) {
        const std::string other = (state.maps() || logn) && scales ? " or a frequency rule such as \"yarn(4)\"" : "";
        return "this RoPE policy needs every layer with full attention, but cannot have " + name_layers(lost) +
               ": use rope=\"native\"" + other;
    }
    if (n_held == 0) {
        return "this RoPE policy would change no layer: those with a sliding window keep their own positions, and the "
               "others have no RoPE: use rope=\"native\"";
    }
    return "";
}

void plong_state_check(const plong_state & state, const llama_model & model) {
    const std::string refusal = plong_policy_refusal(state, model);
    if (!refusal.empty()) {
        throw std::runtime_error(refusal);
    }
}
