/* checks.cpp - exact rows beside those of the plan: which ones, and what they tell about its error. */
#include "checks.h"

#include <algorithm>
#include <cmath>

#include "choose.h"
#include "ggml-backend.h"
#include "input.h"
#include "llama-context.h"
#include "plong_hooks.h"

plong_checks plong_find_checks(const plong_plan & plan, const std::vector<plong_group> & groups, int32_t n_tokens) {
    plong_checks out;
    out.of.assign((size_t) n_tokens, -1);
    for (const plong_group & g : groups) {
        const plong_phase & phase = plan.phase[g.phase];
        int32_t             i     = plan.check > 0 ? (plan.check - g.pos % plan.check) % plan.check : g.n;
        while (i < g.n && plong_phase_reads_all(&phase, g.pos + i)) {
            i += plan.check;
        }
        if (i >= g.n) {
            continue;
        }
        const int32_t first = (int32_t) out.tokens.size();
        for (int32_t at = i; at < g.n; at++) {
            const bool checked = (at - i) % plan.check == 0;
            if (checked) {
                out.tokens.push_back(g.tok + at);
            }
            if (checked || (plan.correct && g.phase == 0)) {
                out.of[(size_t) (g.tok + at)] = (int32_t) out.tokens.size() - 1;
            }
        }
        out.groups.push_back({ g.slot, g.phase, first, (int32_t) out.tokens.size() - first, g.pos + i });
    }
    return out;
}

/* The squares of n values, summed. */
static double squares(const float * x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += (double) x[i] * (double) x[i];
    }
    return sum;
}

void plong_meter_add(plong_state & state, const plong_checked & layer, int32_t n_checks) {
    const int64_t      d = layer.exact->ne[0] / layer.n_head, n = layer.exact->ne[0] * n_checks;
    std::vector<float> left_out((size_t) n), exact((size_t) n);
    ggml_backend_tensor_get(layer.left_out, left_out.data(), 0, left_out.size() * sizeof(float));
    ggml_backend_tensor_get(layer.exact, exact.data(), 0, exact.size() * sizeof(float));
    auto & heads = state.meter[layer.il];
    heads.resize((size_t) layer.n_head);
    for (int32_t i = 0; i < n_checks * layer.n_head; i++) {
        const double  error = squares(left_out.data() + i * d, d), norm = squares(exact.data() + i * d, d);
        plong_error & head = heads[(size_t) (i % layer.n_head)];
        if (std::isfinite(error) && std::isfinite(norm)) {
            head.rows++;
            head.error += error;
            head.norm += norm;
            head.most = std::max(head.most, norm > 0 ? std::sqrt(error / norm) : 0.0);
        }
    }
}

void llm_graph_input_plong::set_checks() const {
    std::vector<int32_t> rows = found.tokens, of = found.of;
    rows.push_back(0);
    std::replace(of.begin(), of.end(), -1, n_checks);
    ggml_backend_tensor_set(check_batch, packed_checks.data(), 0, packed_checks.size() * sizeof(int32_t));
    ggml_backend_tensor_set(check_rows, rows.data(), 0, rows.size() * sizeof(int32_t));
    ggml_backend_tensor_set(check_of, of.data(), 0, of.size() * sizeof(int32_t));
}

ggml_tensor * llm_graph_input_plong::add_chosen(
    ggml_context * ctx, ggml_tensor * choices, int32_t il, const plong_shape & shape, const plong_backend & backend) {
    const int64_t words = sizeof(plong_choice) / sizeof(int32_t), room = choices->ne[0] / words;
    const int64_t tiles = std::min((int64_t) find(shape, backend)->work->n_tiles * 5 / 4 + 16, room);
    ggml_tensor * copy  = ggml_cont(ctx, ggml_view_1d(ctx, choices, tiles * words, 0));
    ggml_set_output(copy);
    chosen.push_back({ il, shape, &backend, copy });
    return copy;
}

void llm_graph_input_plong::measure() {
    for (const plong_checked & layer : checked) {
        plong_meter_add(*state, layer, n_checks);
    }
    for (const layer_choices & layer : recorded) {
        add_reads(layer);
    }
    for (const layer_choices & layer : chosen) {
        count_chosen(layer);
    }
}

/* Counts the keys that were chosen, in place of those that might have been. */
void llm_graph_input_plong::count_chosen(const layer_choices & layer) {
    const plong_work &        work  = *find(layer.shape, *layer.backend)->work;
    const plong_tile *        tiles = plong_work_tiles(&work);
    std::vector<plong_choice> by_tile((size_t) work.n_tiles);
    ggml_backend_tensor_get(layer.choices, by_tile.data(), 0, by_tile.size() * sizeof(plong_choice));
    for (int32_t i = 0; i < work.n_tiles; i++) {
        const plong_phase * phase = plong_batch_phase((const plong_batch *) packed.data(), tiles[i].phase);
        for (int32_t at = 0; tiles[i].choice_room > 0 && at < tiles[i].n_tok; at++) {
            const int64_t most = plong_phase_chosen(phase, plong_tile_pos(&tiles[i], at));
            state->stats.keys_read += (by_tile[(size_t) i].keys - most) * tiles[i].n_h;
        }
    }
}

void plong_measure(const llm_graph_result & graph, ggml_backend_sched_t sched) {
    bool waited = false;
    for (const auto & input : graph.inputs) {
        auto * plong = dynamic_cast<llm_graph_input_plong *>(input.get());
        if (plong && plong->has_results()) {
            if (!waited) {
                ggml_backend_sched_synchronize(sched);
            }
            waited = true;
            plong->measure();
        }
    }
}

extern "C" size_t plong_llama_errors(const llama_context * ctx, plong_error * out, size_t n) {
    size_t total = 0;
    for (const auto & [il, heads] : ctx->get_cparams().plong->meter) {
        for (size_t h = 0; h < heads.size(); h++, total++) {
            if (total < n) {
                out[total]       = heads[h];
                out[total].layer = il;
                out[total].head  = (int32_t) h;
            }
        }
    }
    return total;
}
