/* positions.cpp - the positions at which layers that follow a position map are rotated. Other layers keep theirs. */
#include "positions.h"

#include <vector>

#include "llama-graph.h"
#include "llama-hparams.h"

namespace {

/* One for all layers of a graph that follow the map. */
class input_positions : public llm_graph_input_i {
  public:
    static constexpr const char * name = "plong_positions";

    input_positions(std::shared_ptr<plong_state> state, int64_t n_per_token)
        : state(std::move(state)), n_per_token(n_per_token) {}

    /* As llm_graph_input_pos, whose text has three equal positions per token and a fourth of 0 with M-RoPE. */
    void set_input(const llama_ubatch * ubatch) override {
        if (!ubatch->pos || !tensor->buffer) {
            return;
        }
        const bool             text = ubatch->token && n_per_token == 4;
        const int64_t          n    = ubatch->n_tokens;
        std::vector<llama_pos> folded(n * n_per_token);
        for (int64_t i = 0; i < n * n_per_token; i++) {
            folded[i] = text && i >= 3 * n ? 0 : plong_stored_pos(state.get(), ubatch->pos[text ? i % n : i]);
        }
        ggml_backend_tensor_set(tensor, folded.data(), 0, folded.size() * sizeof(llama_pos));
    }

    bool can_reuse(const llm_graph_params & params) override {
        return params.ubatch.n_tokens * n_per_token == tensor->ne[0];
    }

    ggml_tensor * tensor = nullptr; /* I32 [n_per_token * n_tokens] */

  private:
    std::shared_ptr<plong_state> state;
    int64_t                      n_per_token;
};

} // namespace

llama_pos plong_stored_pos(const plong_state * state, llama_pos pos) {
    return state && state->maps() ? plong_rope_stored(&state->config.rope, pos) : pos;
}

bool plong_fold_positions(const llm_graph_context & graph, ggml_tensor * node) {
    ggml_tensor * const own    = node->src[1];
    ggml_tensor *       folded = ggml_get_tensor(graph.ctx0, input_positions::name);
    if (own == folded) {
        return true;
    }
    const int64_t n_per_token = graph.hparams.n_pos_per_embd();
    if (own->op != GGML_OP_NONE || own->ne[0] != n_per_token * (int64_t) graph.ubatch.n_tokens) {
        return false;
    }
    if (!folded) {
        auto input    = std::make_unique<input_positions>(graph.cparams.plong, n_per_token);
        input->tensor = ggml_new_tensor_1d(graph.ctx0, GGML_TYPE_I32, own->ne[0]);
        folded        = input->tensor;
        ggml_set_input(folded);
        ggml_set_name(folded, input_positions::name);
        ggml_build_forward_expand(graph.gf, folded);
        graph.res->add_input(std::move(input));
    }
    ggml_build_forward_expand(graph.gf, own); /* upstream fills it, even if no other layer is left to read it */
    node->src[1] = folded;
    return true;
}
