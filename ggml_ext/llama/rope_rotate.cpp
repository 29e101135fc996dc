/* rope_rotate.cpp - a node of the graph that rotates rows by a policy, in place of ggml's RoPE. */
#include "rope_rotate.h"

#include <cstring>

#include "llama-graph.h"
#include "rotate.h"

namespace {

/* The angles of the pairs that a token's position of this number rotates. */
void take_section(
    const plong_layer_rope & rope, int section, const std::vector<float> & from, std::vector<float> & angles) {
    for (size_t i = 0; i < rope.sections.size(); i++) {
        if (rope.sections[i] == section) {
            angles[2 * i]     = from[2 * i];
            angles[2 * i + 1] = from[2 * i + 1];
        }
    }
}

/* Rotates a [head, n_head, n_tokens] by the policy, at positions [n_tokens], or [4][n_tokens] with M-RoPE, and with
 * factors [n_tokens] of dynamic policies. It replaces ggml's RoPE, whose float32 frequencies are radians off at position
 * 1e8. Tokens of factor 1 get `own`, the result of ggml's RoPE for a: the same bits as without other tokens in the batch.
 */
void rotate_rows(ggml_tensor * dst, int ith, int nth, void * data) {
    const auto &             side = *static_cast<const plong_rope_side *>(data);
    const plong_layer_rope & rope = *side.rope;
    const ggml_tensor *      a = dst->src[0], *factors = dst->src[2], *own = factors ? dst->src[3] : nullptr;
    const int32_t *          pos = static_cast<const int32_t *>(dst->src[1]->data);
    std::vector<float>       angles(rope.n_rot), other(rope.n_rot);
    for (int64_t t = ith; t < a->ne[2]; t += nth) {
        const float   factor = factors ? static_cast<const float *>(factors->data)[t] : rope.policy.factor;
        const auto &  r      = rope.rotations.at(factor);
        const int64_t p      = pos[t];
        const bool    native = own && factor == 1.0f;
        if (!native) {
            plong_rope_angles(r.table.data(), rope.n_rot, &p, 1, angles.data());
            for (int section = 1; section < 3 && !rope.sections.empty(); section++) {
                const int64_t own_p = pos[section * a->ne[2] + t];
                if (own_p != p) { /* a part of an image */
                    plong_rope_angles(r.table.data(), rope.n_rot, &own_p, 1, other.data());
                    take_section(rope, section, other, angles);
                }
            }
            for (float & x : angles) {
                x *= side.query ? r.magnitude * r.magnitude : 1.0f;
            }
        }
        for (int64_t h = 0; h < a->ne[1]; h++) {
            const ggml_tensor * src  = native ? own : a;
            const char *        from = static_cast<const char *>(src->data) + h * src->nb[1] + t * src->nb[2];
            char *              to   = static_cast<char *>(dst->data) + h * dst->nb[1] + t * dst->nb[2];
            memcpy(to, from, a->ne[0] * sizeof(float));
            if (!native) {
                row_rotate(reinterpret_cast<float *>(to) + side.first, angles.data(), rope.n_rot, rope.neox);
            }
        }
    }
}

bool has_node(ggml_cgraph * gf, const ggml_tensor * node) {
    for (int i = 0; i < ggml_graph_n_nodes(gf); i++) {
        if (ggml_graph_node(gf, i) == node) {
            return true;
        }
    }
    return false;
}

ggml_tensor * copy_node(ggml_context * ctx, const ggml_tensor * node) {
    ggml_tensor * copy = ggml_dup_tensor(ctx, node);
    copy->op           = node->op;
    memcpy(copy->op_params, node->op_params, sizeof(copy->op_params));
    memcpy(copy->src, node->src, sizeof(copy->src));
    return copy;
}

/* The factor of each token of a ubatch, for dynamic policies. One for all layers of a graph. */
class input_factors : public llm_graph_input_i {
  public:
    static constexpr const char * name = "plong_factors";

    explicit input_factors(std::shared_ptr<plong_state> state) : state(std::move(state)) {}

    void set_input(const llama_ubatch * ubatch) override {
        if (!tensor->buffer) {
            return;
        }
        std::vector<float> factors(ubatch->n_tokens);
        for (uint32_t i = 0; i < ubatch->n_tokens; i++) {
            factors[i] = state->factor(ubatch->seq_id[i][0]);
            for (auto & [key, rope] : state->ropes) {
                rope->at(factors[i]);
            }
        }
        ggml_backend_tensor_set(tensor, factors.data(), 0, factors.size() * sizeof(float));
    }

    bool can_reuse(const llm_graph_params & params) override { return params.ubatch.n_tokens == tensor->ne[0]; }

    ggml_tensor * tensor = nullptr; /* F32 [n_tokens] */

  private:
    std::shared_ptr<plong_state> state;
};

} // namespace

void plong_rotate_node(
    const llm_graph_context & graph, ggml_tensor * node, ggml_tensor * factors, const plong_rope_side & side) {
    ggml_tensor * args[4] = { node->src[0], node->src[1], factors };
    const auto *  ne      = node->ne;
    int           n_args  = factors ? 3 : 2;
    if (factors && !has_node(graph.gf, node)) { /* else the copy would come too late */
        args[n_args++] = copy_node(graph.ctx0, node);
    }
    ggml_tensor * made = ggml_custom_4d(
        graph.ctx0, GGML_TYPE_F32, ne[0], ne[1], ne[2], ne[3], args, n_args, rotate_rows, GGML_N_TASKS_MAX,
        const_cast<plong_rope_side *>(&side));
    node->op = made->op;
    memcpy(node->op_params, made->op_params, sizeof(node->op_params));
    memcpy(node->src, made->src, sizeof(node->src));
}

ggml_tensor * plong_token_factors(const llm_graph_context & graph) {
    if (ggml_tensor * known = ggml_get_tensor(graph.ctx0, input_factors::name)) {
        return known;
    }
    auto input    = std::make_unique<input_factors>(graph.cparams.plong);
    input->tensor = ggml_new_tensor_1d(graph.ctx0, GGML_TYPE_F32, graph.ubatch.n_tokens);
    ggml_set_input(input->tensor);
    ggml_set_name(input->tensor, input_factors::name);
    ggml_build_forward_expand(graph.gf, input->tensor);
    ggml_tensor * tensor = input->tensor;
    graph.res->add_input(std::move(input));
    return tensor;
}
