/* rope_node.cpp - the RoPE of a layer, read off its graph node, so that no table of architectures is needed. */
#include "rope_node.h"

#include <cmath>
#include <cstring>

#include "ggml-cpu.h"

namespace {

/* What ggml_rope_ext keeps in op_params. */
struct rope_op {
    int32_t n_past, n_rot, mode, n_ctx, n_ctx_orig;
    float   base, scale, ext_factor, attn_factor, beta_fast, beta_slow;
};

rope_op read_op(const ggml_tensor * node) {
    rope_op op;
    static_assert(sizeof(op) <= GGML_MAX_OP_PARAMS, "rope parameters");
    memcpy(&op, node->op_params, sizeof(op));
    return op;
}

/* The RoPE node that t comes from, through nodes that keep the rotated dims first and the pairs' directions. `lost` is
 * set when a node on the way leaves doubt; null without it means that the layer has no RoPE. */
ggml_tensor * find_rope(ggml_tensor * t, bool & lost) {
    const auto bent = [&](ggml_tensor * src) { /* harmless only when no rotation came before */
                                               ggml_tensor * before = find_rope(src, lost);
                                               lost |= before != nullptr;
                                               return before;
    };
    while (t) {
        switch (t->op) {
            case GGML_OP_ROPE: return t;
            case GGML_OP_RESHAPE:
            case GGML_OP_PERMUTE:
            case GGML_OP_CONT:
            case GGML_OP_CPY:
            case GGML_OP_SCALE:
            case GGML_OP_RMS_NORM:
            case GGML_OP_NORM:
            case GGML_OP_L2_NORM: t = t->src[0]; break;
            case GGML_OP_VIEW:
                if (t->view_offs != 0) {
                    return bent(t->src[0]);
                }
                t = t->src[0];
                break;
            case GGML_OP_MUL:
                if (t->src[1]->ne[0] != 1) { /* a weight per dim */
                    return bent(t->src[0]);
                }
                t = t->src[0];
                break;
            case GGML_OP_ADD:
            case GGML_OP_CLAMP: return bent(t->src[0]);
            case GGML_OP_MUL_MAT:
            case GGML_OP_MUL_MAT_ID: return nullptr;
            default: lost = true; return nullptr;
        }
    }
    return nullptr;
}

/* Frequencies as ggml's own rope computes them, in double precision; `factors` as in the node. */
void node_freqs(const rope_op & op, const std::vector<float> & factors, std::vector<double> & f) {
    const double d    = op.n_rot;
    const auto   corr = [&](double beta) {
        return d * log(op.n_ctx_orig / (2 * M_PI * beta)) / (2 * log((double) op.base));
    };
    const double low  = op.ext_factor != 0 ? fmax(0, floor(corr(op.beta_fast))) : 0;
    const double high = op.ext_factor != 0 ? fmin(d - 1, ceil(corr(op.beta_slow))) : 0;
    for (int i = 0; i < op.n_rot / 2; i++) {
        const double own = pow((double) op.base, -2.0 * i / d) / (factors.empty() ? 1.0 : factors[i]);
        double       mix = 0;
        if (op.ext_factor != 0) {
            mix = (1 - fmin(1, fmax(0, (i - low) / fmax(0.001, high - low)))) * op.ext_factor;
        }
        f[i] = own * op.scale * (1 - mix) + own * mix;
    }
}

std::shared_ptr<plong_constant> make_constant(std::vector<float> values) {
    auto         c    = std::make_shared<plong_constant>();
    const size_t size = values.size() * sizeof(float);
    c->ne             = (int64_t) values.size();
    c->buffer.reset(ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size));
    if (!c->buffer) {
        throw std::bad_alloc();
    }
    ggml_backend_buffer_set_usage(c->buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    memcpy(ggml_backend_buffer_get_base(c->buffer.get()), values.data(), size);
    c->values = std::move(values);
    return c;
}

std::vector<float> read_factors(const ggml_tensor * t, int n) {
    std::vector<float> out;
    if (t && t->buffer && t->data) {
        out.resize(n);
        ggml_backend_tensor_get(t, out.data(), 0, n * sizeof(float));
    }
    return out;
}

std::shared_ptr<plong_constant> policy_factors(
    const plong_rope & policy, int32_t n_rot, double base, float & magnitude) {
    std::vector<double> f(n_rot / 2);
    magnitude = plong_rope_freqs(&policy, n_rot, base, nullptr, f.data());
    std::vector<float> factors(n_rot / 2);
    for (int i = 0; i < n_rot / 2; i++) {
        factors[i] = (float) (pow(base, -2.0 * i / n_rot) / f[i]);
    }
    return make_constant(std::move(factors));
}

void rewrite(ggml_tensor * node, ggml_tensor * factors, float magnitude) {
    rope_op op     = read_op(node);
    op.scale       = 1.0f;
    op.ext_factor  = 0.0f;
    op.attn_factor = magnitude;
    memcpy(node->op_params, &op, sizeof(op));
    node->src[2] = factors;
}

} // namespace

ggml_tensor * plong_constant::tensor(ggml_context * ctx, const char * name) const {
    ggml_tensor * t = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, ne);
    ggml_backend_tensor_alloc(buffer.get(), t, ggml_backend_buffer_get_base(buffer.get()));
    ggml_set_name(t, name);
    return t;
}

std::shared_ptr<plong_layer_rope> plong_rope_of(
    plong_state & state, ggml_context * ctx, ggml_cgraph * gf, ggml_tensor * q, ggml_tensor * k, std::string & reason) {
    if (!state.maps() && !state.scales()) {
        return std::make_shared<plong_layer_rope>();
    }
    bool                lost    = false;
    ggml_tensor * const nodes[] = { find_rope(q, lost), k ? find_rope(k, lost) : nullptr };
    if (lost || (nodes[0] == nullptr) != (nodes[1] == nullptr)) {
        reason = "the layer's RoPE was not found in its graph";
        return nullptr;
    }
    if (!nodes[0]) {
        return std::make_shared<plong_layer_rope>(); /* a layer without RoPE */
    }
    const rope_op op = read_op(nodes[0]), op_k = read_op(nodes[1]);
    if (op.n_rot != op_k.n_rot || op.mode != op_k.mode || op.base != op_k.base || op.n_rot > PLONG_MAX_ROT) {
        reason = "query and key have different RoPE";
        return nullptr;
    }
    if (op.mode != GGML_ROPE_TYPE_NORMAL && op.mode != GGML_ROPE_TYPE_NEOX) {
        reason = "RoPE pairs are neither adjacent nor half a head apart";
        return nullptr;
    }
    const std::vector<float> own = read_factors(nodes[0]->src[2], op.n_rot / 2);

    std::string key((const char *) &op, sizeof(op));
    key.append((const char *) own.data(), own.size() * sizeof(float));
    auto & rope = state.ropes[key];
    if (!rope) {
        rope        = std::make_shared<plong_layer_rope>();
        rope->n_rot = op.n_rot;
        rope->neox  = op.mode == GGML_ROPE_TYPE_NEOX;
        std::vector<double> f(op.n_rot / 2);
        if (state.scales()) {
            rope->factors = policy_factors(state.config.rope, op.n_rot, op.base, rope->magnitude);
            plong_rope_freqs(&state.config.rope, op.n_rot, op.base, nullptr, f.data());
        } else {
            node_freqs(op, own, f);
        }
        if (state.maps()) {
            std::vector<float> table(PLONG_ROPE_TABLE_FLOATS(op.n_rot));
            plong_rope_table(f.data(), op.n_rot, table.data());
            rope->table = make_constant(std::move(table));
        }
    }
    if (rope->factors) {
        ggml_tensor * factors = rope->factors->tensor(ctx, "plong_factors");
        ggml_build_forward_expand(gf, factors);
        for (ggml_tensor * node : nodes) {
            rewrite(node, factors, rope->magnitude);
        }
    }
    return rope;
}

ggml_tensor * plong_shift_factors(const plong_state * state, ggml_context * ctx, int32_t n_rot, float base) {
    if (!state || !state->scales()) {
        return nullptr;
    }
    auto & ropes = const_cast<plong_state *>(state)->ropes;
    auto & rope  = ropes["shift " + std::to_string(n_rot) + " " + std::to_string(base)];
    if (!rope) {
        rope          = std::make_shared<plong_layer_rope>();
        rope->n_rot   = n_rot;
        rope->factors = policy_factors(state->config.rope, n_rot, base, rope->magnitude);
    }
    return rope->factors->tensor(ctx, "plong_factors");
}
