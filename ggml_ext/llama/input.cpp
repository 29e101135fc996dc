/* input.cpp - the op's inputs for each ubatch: sequences, query groups and cells, and the work planned from them. */
#include "input.h"

#include <algorithm>
#include <map>
#include <new>

#include "cells.h"
#include "choose.h"
#include "index.h"
#include "llama-context.h"

namespace {

/* What the window layers of a model read, as a plan: the last n_swa tokens, those of the query's own chunk of n_swa
 * (Llama 4), or the earlier half of a window around the query. */
plong_plan window_plan(const llama_hparams & hparams) {
    const int32_t n     = (int32_t) hparams.n_swa;
    plong_phase   phase = {};
    if (hparams.swa_type == LLAMA_SWA_TYPE_CHUNKED) {
        phase.weight     = PLONG_WEIGHT_NONE;
        phase.n_branches = 1;
        phase.segment[0] = n;
        phase.rate[0]    = 1;
    } else {
        phase.window = hparams.swa_type == LLAMA_SWA_TYPE_SYMMETRIC ? n / 2 + 1 : n;
    }
    plong_plan plan = {};
    plan.phase[0] = plan.phase[1] = phase;
    return plan;
}

} // namespace

std::string plong_window_text(const llama_hparams & hparams) {
    const plong_phase phase = window_plan(hparams).phase[0];
    return phase.window > 0 ? "the last " + std::to_string(phase.window) + " tokens"
                            : "the tokens of its chunk of " + std::to_string(phase.segment[0]);
}

llm_graph_input_plong::llm_graph_input_plong(
    const llm_graph_context & graph, plong_scope scope, mctx_fn mctx, int32_t n_head)
    : state(graph.cparams.plong), scope(scope), swa(window_plan(graph.hparams)), mctx(std::move(mctx)),
      n_tokens((int32_t) graph.ubatch.n_tokens), n_head(n_head) {
    n_kv = this->mctx()->get_n_kv();
    prepare(graph.ubatch, graph.cparams);
    const int32_t n_slots = std::max((int32_t) parts.slots.size(), (int32_t) graph.ubatch.n_seqs_unq);
    int32_t       n_runs  = 64; /* with room to grow before the graph must be built anew */
    while (n_runs < (int32_t) parts.runs.size()) {
        n_runs *= 2;
    }
    const int32_t n_pages = (int32_t) parts.pages.size() + n_tokens / PLONG_PAGE + 16;
    n_checks              = (int32_t) found.tokens.size();
    const auto input      = [&graph](ggml_type type, int64_t n0, int64_t n1, const char * name) {
        ggml_tensor * t = ggml_new_tensor_2d(graph.ctx0, type, n0, n1);
        ggml_set_input(t);
        ggml_set_name(t, name);
        return t;
    };
    const int64_t words = (int64_t) plong_batch_words(n_slots, n_tokens, n_runs, n_pages, n_checks);
    batch               = input(GGML_TYPE_I32, words, 1, "plong_batch");
    if (n_checks > 0) {
        check_batch = input(GGML_TYPE_I32, words, 1, "plong_check_batch");
        check_rows  = input(GGML_TYPE_I32, n_checks + 1, 1, "plong_check_rows");
        check_of    = input(GGML_TYPE_I32, n_tokens, 1, "plong_check_of");
    }
}

/* No layer of an exact plan is: all of them share one work. */
bool llm_graph_input_plong::is_dense(int32_t il) const {
    const plong_plan & plan  = this->plan();
    const bool         exact = plong_phase_is_exact(&plan.phase[0]) && plong_phase_is_exact(&plan.phase[1]);
    return il < plan.dense_layers && !exact;
}

llm_graph_input_plong::planned * llm_graph_input_plong::find(
    const plong_shape & shape, const plong_backend & backend, bool checks) {
    for (planned & known : works) {
        if (memcmp(&known.shape, &shape, sizeof(shape)) == 0 && known.backend == &backend && known.checks == checks) {
            return &known;
        }
    }
    return nullptr;
}

int64_t llm_graph_input_plong::choice_words(const plong_shape & shape, const plong_backend & backend) {
    planned & p = *find(shape, backend);
    if (p.choice_words == 0) {
        const int64_t words = (int64_t) plong_work_choice_words(p.work.get());
        p.choice_words      = words > 0 ? words + words / 4 + 1024 : 0;
    }
    return p.choice_words;
}

uint32_t llm_graph_input_plong::first_stream() const { return mctx()->plong_first_stream(); }

ggml_tensor * llm_graph_input_plong::work(
    ggml_context * ctx, const plong_shape & shape, const plong_backend & backend) {
    n_layers++;
    n_dense += shape.dense;
    return add_work(ctx, shape, backend, false);
}

ggml_tensor * llm_graph_input_plong::check_work(ggml_context * ctx, plong_shape shape, const plong_backend & backend) {
    shape.dense = 1;
    return add_work(ctx, shape, backend, true);
}

ggml_tensor * llm_graph_input_plong::add_work(
    ggml_context * ctx, const plong_shape & shape, const plong_backend & backend, bool checks) {
    if (const planned * known = find(shape, backend, checks)) {
        return known->tensor;
    }
    planned fresh = { shape, checks, &backend, nullptr, { nullptr, plong_work_free }, 0 };
    plan(fresh);
    /* with room to grow before the graph must be built anew */
    const int64_t words = (int64_t) plong_work_words(fresh.work.get());
    fresh.tensor        = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, words + words / 4 + 256);
    ggml_set_input(fresh.tensor);
    ggml_set_name(fresh.tensor, "plong_work");
    works.push_back(std::move(fresh));
    return works.back().tensor;
}

void llm_graph_input_plong::set_input(const llama_ubatch * ubatch) {
    if (!batch->buffer) {
        return;
    }
    if (!ready) {
        prepare(*ubatch);
    }
    ready = false;
    GGML_ASSERT(fits());
    ggml_backend_tensor_set(batch, packed.data(), 0, packed.size() * sizeof(int32_t));
    if (n_checks > 0) {
        set_checks();
    }
    for (const planned & p : works) {
        ggml_backend_tensor_set(p.tensor, p.work.get(), 0, plong_work_words(p.work.get()) * sizeof(int32_t));
    }
    for (plong_page page : parts.pages) { /* they will be when the graph has run */
        page.stream += (int32_t) first_stream();
        plong_set_indexed(*state, page);
    }
    count();
}

bool llm_graph_input_plong::can_reuse(const llm_graph_params & params) {
    if (params.ubatch.n_tokens != (uint32_t) n_tokens) {
        return false;
    }
    if (plong_plan_chooses(&plan()) &&
        mctx()->get_n_kv() != n_kv) { /* where there is no mask, upstream does not check it */
        return false;
    }
    prepare(params.ubatch, params.cparams);
    return fits();
}

/* ---- the ubatch ----------------------------------------------------------------------------------------------- */

void llm_graph_input_plong::collect(const llama_ubatch & ubatch) {
    const llama_kv_cache_context &                              cache = *mctx();
    std::map<llama_seq_id, int32_t>                             slot_of, n_of;
    std::map<const llama_kv_cells *, std::vector<llama_seq_id>> seqs_of;
    for (uint32_t i = 0; i < ubatch.n_tokens; i++) {
        const llama_seq_id seq = ubatch.seq_id[i][0];
        if (n_of[seq]++ == 0) {
            seqs_of[&cache.plong_cells(seq)].push_back(seq);
        }
    }
    for (const auto & [cells, seqs] : seqs_of) {
        const auto runs = plong_runs(*cells, cache.get_n_kv(), seqs);
        for (size_t s = 0; s < seqs.size(); s++) {
            slot_of[seqs[s]]    = (int32_t) parts.slots.size();
            const int32_t begin = (int32_t) parts.runs.size();
            parts.runs.insert(parts.runs.end(), runs[s].begin(), runs[s].end());
            parts.slots.push_back({ (int32_t) cache.plong_stream(seqs[s]), begin, (int32_t) parts.runs.size() });
        }
    }
    for (uint32_t i = 0; i < ubatch.n_tokens; i++) {
        const llama_seq_id seq   = ubatch.seq_id[i][0];
        const llama_pos    pos   = ubatch.pos[i];
        const int32_t      slot  = slot_of[seq];
        const auto         tail  = state->tails.find(seq);
        const int          phase = tail != state->tails.end() ? pos >= tail->second : n_of[seq] == 1;
        if (!parts.groups.empty()) {
            plong_group & last = parts.groups.back();
            if (last.slot == slot && last.phase == phase && last.pos + last.n == pos) {
                last.n++;
                continue;
            }
        }
        parts.groups.push_back({ slot, phase, (int32_t) i, 1, pos });
    }
    if (plong_plan_wants_index(&plan())) {
        parts.pages = plong_missing_pages(*state, plan(), parts, first_stream());
    }
}

namespace {

/* A batch as the op reads it. */
std::vector<int32_t> pack_batch(
    plong_batch head, const plong_batch_parts & parts, const std::vector<int32_t> & checks) {
    head.n_slots  = (int32_t) parts.slots.size();
    head.n_groups = (int32_t) parts.groups.size();
    head.n_runs   = (int32_t) parts.runs.size();
    head.n_pages  = (int32_t) parts.pages.size();
    head.n_checks = (int32_t) checks.size();
    std::vector<int32_t> out(plong_batch_words(head.n_slots, head.n_groups, head.n_runs, head.n_pages, head.n_checks));
    char *               at  = (char *) out.data();
    const auto           put = [&at](const void * data, size_t size) {
        if (size > 0) {
            memcpy(at, data, size);
        }
        at += size;
    };
    put(&head, sizeof(head));
    put(parts.slots.data(), parts.slots.size() * sizeof(plong_slot));
    put(parts.groups.data(), parts.groups.size() * sizeof(plong_group));
    put(parts.runs.data(), parts.runs.size() * sizeof(plong_run));
    put(parts.pages.data(), parts.pages.size() * sizeof(plong_page));
    put(checks.data(), checks.size() * sizeof(int32_t));
    return out;
}

} // namespace

void llm_graph_input_plong::pack() {
    plong_batch head = {};
    head.n_tokens    = n_tokens;
    head.precision   = state->config.precision;
    head.plan        = plan();
    head.rope.factor = 1.0f;
    if (scope == PLONG_FULL) {
        head.rope = state->config.rope;
    }
    found  = plong_find_checks(head.plan, parts.groups, n_tokens);
    packed = pack_batch(head, parts, found.tokens);
    if (!found.tokens.empty()) {
        plong_batch_parts parts_of = parts;
        parts_of.groups            = found.groups;
        parts_of.pages.clear();
        head.n_tokens = (int32_t) found.tokens.size() + 1; /* a row that is no check comes last */
        head.step     = head.plan.check;
        packed_checks = pack_batch(head, parts_of, {});
    }
}

void llm_graph_input_plong::prepare(const llama_ubatch & ubatch, const llama_cparams & cparams) {
    n_threads = ubatch.n_tokens > 1 ? cparams.n_threads_batch : cparams.n_threads;
    prepare(ubatch);
}

void llm_graph_input_plong::prepare(const llama_ubatch & ubatch) {
    parts = {};
    if (ubatch.pos && ubatch.seq_id) {
        collect(ubatch);
        ready = true;
    }
    pack();
    for (planned & p : works) {
        plan(p);
    }
}

void llm_graph_input_plong::plan(planned & p) const {
    const plong_limits limits = p.backend->limits(&p.shape, n_threads);
    const auto &       words  = p.checks ? packed_checks : packed;
    p.work.reset(plong_work_new((const plong_batch *) words.data(), &p.shape, &limits));
    if (!p.work) {
        throw std::bad_alloc();
    }
}

bool llm_graph_input_plong::fits() {
    bool fits = (int64_t) packed.size() <= batch->ne[0] && (int32_t) found.tokens.size() == n_checks;
    for (const planned & p : works) {
        fits = fits && p.work && (int64_t) plong_work_words(p.work.get()) <= p.tensor->ne[0] &&
               (int64_t) plong_work_choice_words(p.work.get()) <= p.choice_words;
    }
    for (const layer_choices & layer : chosen) {
        const int64_t words = sizeof(plong_choice) / sizeof(int32_t);
        fits                = fits && find(layer.shape, *layer.backend)->work->n_tiles * words <= layer.choices->ne[0];
    }
    return fits;
}

/* Keys are counted by position: a hole in the cache counts as read. Those outside a model's own window are not
 * visible. */
void llm_graph_input_plong::count() {
    plong_stats & stats = state->stats;
    stats.n_runs += (int64_t) parts.runs.size();
    for (const plong_group & g : parts.groups) {
        const plong_phase & phase   = plan().phase[g.phase];
        const int32_t       n_kinds = plong_phase_branches(&phase) > 0 ? n_head : 1;
        for (int32_t p = g.pos; p < g.pos + g.n; p++) {
            int64_t read = 0;
            for (int32_t h = 0; h < n_kinds; h++) {
                read += plong_phase_cost(&phase, p, h);
            }
            read *= n_head / n_kinds;
            const int64_t visible = scope == PLONG_FULL ? ((int64_t) p + 1) * n_head : read;
            stats.keys_read += read * (n_layers - n_dense) + visible * n_dense;
            stats.keys_visible += visible * n_layers;
        }
        stats.n_queries += (int64_t) g.n * n_head * n_layers;
        stats.n_tokens += counts_tokens ? g.n : 0;
    }
    for (const plong_group & g : found.groups) {
        for (int32_t i = 0; i < g.n; i++) {
            stats.keys_read += ((int64_t) g.pos + i * plan().check + 1) * n_head * (n_layers - n_dense);
        }
    }
}
