/* rope_node.cpp - reads the RoPE of a layer from its graph node, so that no table of architectures is needed. */
#include "rope_node.h"

#include <cmath>
#include <cstring>

#include "ggml-cpu.h"
#include "llama-graph.h"
#include "positions.h"
#include "rope_rotate.h"
#include "yarn.h"

namespace {

/* What ggml_rope_ext and ggml_rope_multi keep in op_params. */
struct rope_op {
    int32_t n_past, n_rot, mode, n_ctx, n_ctx_orig;
    float   base, scale, ext_factor, attn_factor, beta_fast, beta_slow;
    int32_t sections[GGML_MROPE_SECTIONS];
    int32_t first; /* of the rotated dims */
};

rope_op read_op(const ggml_tensor * node) {
    rope_op op;
    static_assert(sizeof(op) <= GGML_MAX_OP_PARAMS, "rope parameters");
    memcpy(&op, node->op_params, sizeof(op));
    return op;
}

/* A RoPE node, and the first rotated dim in the rows that were searched. */
struct found_rope {
    ggml_tensor * node  = nullptr;
    int64_t       first = 0;
};

found_rope find_rope(ggml_tensor * t, bool & lost);

/* The same behind a node that changes directions of pairs: that is harmless only if there is no rotation before it. */
found_rope find_none(ggml_tensor * t, bool & lost) {
    const found_rope before = find_rope(t, lost);
    lost |= before.node != nullptr;
    return before;
}

/* Rows of two parts side by side, one of which may be rotated (multi-head latent attention). */
found_rope find_in_parts(ggml_tensor * t, bool & lost) {
    lost |= t->op_params[0] != 0; /* the dimension in which they are joined */
    const found_rope a = find_rope(t->src[0], lost), b = find_rope(t->src[1], lost);
    lost |= a.node && b.node;
    return b.node ? found_rope { b.node, b.first + t->src[0]->ne[0] } : a;
}

/* The RoPE node behind t, followed back through nodes that keep the place of the rotated dims and the directions of
 * pairs. `lost` is set if a node on the way leaves doubt; null without it means that the layer has no RoPE. */
found_rope find_rope(ggml_tensor * t, bool & lost) {
    bool       same_rows = true; /* as long as those of the tensor that is searched */
    const auto found     = [&](found_rope rope) {
        lost |= rope.first > 0 && !same_rows;
        return rope;
    };
    while (t) {
        same_rows &= !t->src[0] || t->ne[0] == t->src[0]->ne[0] || t->op == GGML_OP_CONCAT;
        switch (t->op) {
            case GGML_OP_ROPE: return found({ t, read_op(t).first });
            case GGML_OP_CONCAT: return found(find_in_parts(t, lost));
            case GGML_OP_REPEAT:
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
                    return find_none(t->src[0], lost);
                }
                t = t->src[0];
                break;
            case GGML_OP_MUL:
                if (t->src[1]->ne[0] != 1) { /* a weight per dim */
                    return find_none(t->src[0], lost);
                }
                t = t->src[0];
                break;
            case GGML_OP_ADD:
            case GGML_OP_CLAMP: return find_none(t->src[0], lost);
            case GGML_OP_MUL_MAT:
            case GGML_OP_MUL_MAT_ID: return {};
            default: lost = true; return {};
        }
    }
    return {};
}

/* Frequencies as ggml's own rope computes them, in double precision; `factors` as in the node. */
void node_freqs(const rope_op & op, const std::vector<float> & factors, std::vector<double> & f) {
    const double          d    = op.n_rot;
    const plong_yarn_ramp ramp = plong_yarn_ramp_of(d, op.base, op.n_ctx_orig, op.beta_fast, op.beta_slow);
    for (int i = 0; i < op.n_rot / 2; i++) {
        const double own = pow((double) op.base, -2.0 * i / d) / (factors.empty() ? 1.0 : factors[i]);
        const double mix = op.ext_factor != 0 ? (1 - plong_yarn_ramp_at(ramp, i)) * op.ext_factor : 0;
        f[i]             = own * op.scale * (1 - mix) + own * mix;
    }
}

bool is_mrope(const rope_op & op) { return op.mode == GGML_ROPE_TYPE_MROPE || op.mode == GGML_ROPE_TYPE_IMROPE; }

/* Which of a token's four positions rotates each pair (arXiv 2409.12191; interleaved: Qwen3-VL). Tokens of text have the
 * fourth one at 0, and the other three at theirs. */
std::vector<uint8_t> pair_sections(const rope_op & op) {
    const int32_t * s   = op.sections;
    const int       sum = s[0] + s[1] + s[2] + s[3];
    const int       h = s[0], w = h + s[1], e = w + s[2];

    std::vector<uint8_t> out(is_mrope(op) && sum > 0 ? op.n_rot / 2 : 0);
    for (size_t i = 0; i < out.size(); i++) {
        const int at = (int) i % sum;
        if (op.mode == GGML_ROPE_TYPE_IMROPE) {
            out[i] = at < 3 * s[at % 3] ? at % 3 : 3;
        } else {
            out[i] = at < h ? 0 : at < w ? 1 : at < e ? 2 : 3;
        }
    }
    return out;
}

/* Frequency 0 for pairs that no position of a text rotates. */
void still_pairs(const std::vector<uint8_t> & sections, std::vector<double> & f) {
    for (size_t i = 0; i < sections.size(); i++) {
        f[i] = sections[i] == 3 ? 0.0 : f[i];
    }
}

std::shared_ptr<plong_constant> make_constant(const std::vector<float> & values) {
    auto         c    = std::make_shared<plong_constant>();
    const size_t size = values.size() * sizeof(float);
    c->ne             = (int64_t) values.size();
    c->buffer.reset(ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size));
    if (!c->buffer) {
        throw std::bad_alloc();
    }
    ggml_backend_buffer_set_usage(c->buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    memcpy(ggml_backend_buffer_get_base(c->buffer.get()), values.data(), size);
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

/* For ggml's own RoPE, on backends that cannot run rotate_rows(). */
void rewrite(ggml_tensor * node, ggml_tensor * factors, float magnitude) {
    rope_op op     = read_op(node);
    op.scale       = 1.0f;
    op.ext_factor  = 0.0f;
    op.attn_factor = magnitude;
    memcpy(node->op_params, &op, sizeof(op));
    node->src[2] = factors;
}

bool only_cpu(ggml_backend_sched_t sched) {
    for (int i = 0; i < ggml_backend_sched_get_n_backends(sched); i++) {
        const auto type = ggml_backend_dev_type(ggml_backend_get_device(ggml_backend_sched_get_backend(sched, i)));
        if (type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU) {
            return false;
        }
    }
    return true;
}

std::shared_ptr<plong_constant> factors_for_ggml(const plong_layer_rope::rotation & r, int32_t n_rot, double base) {
    std::vector<float> factors(n_rot / 2);
    for (int i = 0; i < n_rot / 2; i++) {
        factors[i] = r.f[i] == 0.0 ? 1.0f : (float) (pow(base, -2.0 * i / n_rot) / r.f[i]);
    }
    return make_constant(factors);
}

} // namespace

const plong_layer_rope::rotation & plong_layer_rope::at(float factor) {
    auto found = rotations.find(factor);
    if (found == rotations.end()) { /* never dropped, since a running graph may need it, and there are few factors */
        plong_rope with = policy;
        with.factor     = factor;
        rotation r;
        r.f.resize(n_rot / 2);
        r.table.resize(PLONG_ROPE_TABLE_FLOATS(n_rot));
        r.magnitude = plong_rope_freqs(&with, n_rot, base, nullptr, r.f.data());
        for (size_t i = 0; i < own.size(); i++) {
            r.f[i] /= (double) own[i];
        }
        still_pairs(sections, r.f);
        plong_rope_table(r.f.data(), n_rot, r.table.data());
        found = rotations.emplace(factor, std::move(r)).first;
    }
    return found->second;
}

ggml_tensor * plong_constant::tensor(ggml_context * ctx, const char * name) const {
    ggml_tensor * t = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, ne);
    ggml_backend_tensor_alloc(buffer.get(), t, ggml_backend_buffer_get_base(buffer.get()));
    ggml_set_name(t, name);
    return t;
}

std::shared_ptr<plong_layer_rope> plong_rope_of(
    const llm_graph_context & graph, plong_state & state, ggml_tensor * q, ggml_tensor * k,
    const std::shared_ptr<plong_layer_rope> & shared, std::string & reason) {
    bool                       lost    = false;
    const found_rope           found[] = { find_rope(q, lost), k ? find_rope(k, lost) : found_rope {} };
    std::vector<ggml_tensor *> nodes   = { found[0].node };
    if (k) {
        nodes.push_back(found[1].node);
    }
    const bool k_has_rope = k ? nodes[1] != nullptr : shared && shared->n_rot > 0;
    if (lost || (nodes[0] != nullptr) != k_has_rope) {
        reason = "the layer's RoPE was not found in its graph";
        return nullptr;
    }
    if (!nodes[0]) {
        return std::make_shared<plong_layer_rope>(); /* a layer without RoPE */
    }
    if (k && nodes[0] == nodes[1] && state.scales()) {
        reason = "query and key come from one RoPE node";
        return nullptr;
    }
    const rope_op op = read_op(nodes[0]), op_k = read_op(nodes.back());
    if (op.n_rot != op_k.n_rot || op.mode != op_k.mode || op.base != op_k.base || op.n_rot > PLONG_MAX_ROT ||
        (k && found[0].first != found[1].first)) {
        reason = "query and key have different RoPE";
        return nullptr;
    }
    if (op.mode != GGML_ROPE_TYPE_NORMAL && op.mode != GGML_ROPE_TYPE_NEOX && !is_mrope(op)) {
        reason = "RoPE pairs are neither adjacent nor half a head apart";
        return nullptr;
    }
    const std::vector<float> own = read_factors(nodes[0]->src[2], op.n_rot / 2);

    const int32_t firsts[] = { op_k.first, (int32_t) found[0].first };
    std::string   key((const char *) &op, sizeof(op));
    key.append((const char *) firsts, sizeof(firsts));
    key.append((const char *) own.data(), own.size() * sizeof(float));
    auto &     rope  = state.ropes[key];
    const bool exact = state.dynamic() || only_cpu(graph.sched);
    if (!rope) {
        rope           = std::make_shared<plong_layer_rope>();
        rope->n_rot    = op.n_rot;
        rope->first    = (int32_t) found[0].first;
        rope->neox     = op.mode != GGML_ROPE_TYPE_NORMAL;
        rope->sections = pair_sections(op);
        rope->own      = own;
        rope->base     = op.base;
        rope->policy   = state.config.rope;
        for (int i = 0; i < 2; i++) {
            rope->sides[i] = { rope.get(), i == 0, i == 0 ? op.first : op_k.first };
        }
        std::vector<double> f(op.n_rot / 2);
        if (state.scales()) {
            f = rope->at(rope->policy.factor).f;
        } else {
            node_freqs(op, own, f);
            still_pairs(rope->sections, f);
        }
        if (state.maps()) {
            std::vector<float> table(PLONG_ROPE_TABLE_FLOATS(op.n_rot));
            plong_rope_table(f.data(), op.n_rot, table.data());
            rope->table = make_constant(table);
        }
        if (!state.scales()) {
            rope->rotations[rope->policy.factor].f = f;
        }
        if (state.scales() && !exact) {
            rope->factors = factors_for_ggml(rope->at(rope->policy.factor), op.n_rot, op.base);
        }
    }
    if (!k && rope != shared) {
        reason = "its RoPE is not that of the layer whose keys it reads";
        return nullptr;
    }
    for (ggml_tensor * node : nodes) {
        if (state.maps() && !plong_fold_positions(graph, node)) {
            reason = "the positions of its RoPE are not those of the batch";
            return nullptr;
        }
    }
    if (!state.scales() || (state.dynamic() && !graph.cparams.plong_scaled)) {
        return rope;
    }
    ggml_tensor * factors = nullptr;
    if (state.dynamic()) {
        factors = plong_token_factors(graph);
    } else if (!exact) {
        factors = rope->factors->tensor(graph.ctx0, "plong_ggml_factors");
        ggml_build_forward_expand(graph.gf, factors);
    }
    for (size_t i = 0; i < nodes.size(); i++) {
        if (exact) {
            plong_rotate_node(graph, nodes[i], factors, rope->sides[i]);
        } else {
            const float m = rope->sides[i].query ? rope->at(rope->policy.factor).magnitude : 1.0f;
            rewrite(nodes[i], factors, m * m);
        }
    }
    return rope;
}
