/* input.h - the op's inputs: what it must know about each ubatch, and the work planned from that for layers of each
 * shape. */
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "backend.h"
#include "checks.h"
#include "llama-graph.h"
#include "llama-kv-cache.h"
#include "plong_state.h"

/* Sequences, query groups and cell runs of one ubatch. */
struct plong_batch_parts {
    std::vector<plong_slot>  slots;
    std::vector<plong_group> groups;
    std::vector<plong_run>   runs;
    std::vector<plong_page>  pages;
};

/* Which layers share an input. */
enum plong_scope {
    PLONG_FULL,   /* those that see every key, and follow the user's plan and policy */
    PLONG_WINDOW, /* those that see a window, which is their plan; their RoPE is the model's own */
};

/* What a window layer of the model reads, in words. */
std::string plong_window_text(const llama_hparams & hparams);

/* One for all layers of a graph that read the same cache. */
class llm_graph_input_plong : public llm_graph_input_i {
  public:
    using mctx_fn = std::function<const llama_kv_cache_context *()>;

    /* The choices of a layer, to be read when the graph has run; null where it chooses no keys. */
    struct layer_choices {
        int32_t               il;
        plong_shape           shape;
        const plong_backend * backend;
        ggml_tensor *         choices;
    };

    llm_graph_input_plong(const llm_graph_context & graph, plong_scope scope, mctx_fn mctx, int32_t n_head);

    void set_input(const llama_ubatch * ubatch) override;
    bool can_reuse(const llm_graph_params & params) override;

    /* The I32 tensor with the work of a layer of this shape, planned for its backend. */
    ggml_tensor * work(ggml_context * ctx, const plong_shape & shape, const plong_backend & backend);

    /* The same of the ubatch's checks, for which every key is read. */
    ggml_tensor * check_work(ggml_context * ctx, plong_shape shape, const plong_backend & backend);

    /* Words of the choices of such a layer, with room to grow; 0: it chooses no keys in this ubatch. */
    int64_t choice_words(const plong_shape & shape, const plong_backend & backend);

    /* The stream of the cache from which those of the ubatch are counted. */
    uint32_t first_stream() const;

    /* Each token of a ubatch is counted once, by one of the graph's inputs. */
    bool counts_tokens = true;

    /* Whether the work of layer il is that of exact attention, whatever the plan. */
    bool is_dense(int32_t il) const;

    /* How many rows of the ubatch are checked; 0: the tensors of checks below are null. */
    int32_t checks() const { return n_checks; }

    /* To be called for each layer whose rows are, or that chooses keys, and when the graph has run. */
    void          add_checked(const plong_checked & layer) { checked.push_back(layer); }
    ggml_tensor * add_chosen(
        ggml_context * ctx, ggml_tensor * choices, int32_t il, const plong_shape & shape,
        const plong_backend & backend);
    bool has_results() const { return !checked.empty() || !chosen.empty() || !recorded.empty(); }

    /* To be called for each layer while the context records. */
    void record(const layer_choices & layer) { recorded.push_back(layer); }

    void measure();

    ggml_tensor * batch       = nullptr; /* I32 [words] */
    ggml_tensor * check_batch = nullptr; /* I32 [words], of the checks and a last row that is no check */
    ggml_tensor * check_rows  = nullptr; /* I32 [checks + 1] their tokens */
    ggml_tensor * check_of    = nullptr; /* I32 [tokens] the row of check_rows that corrects each */

  private:
    /* Work that layers share. */
    struct planned {
        plong_shape                                             shape;
        bool                                                    checks; /* of the checks, not of the ubatch */
        const plong_backend *                                   backend;
        ggml_tensor *                                           tensor;
        std::unique_ptr<plong_work, decltype(&plong_work_free)> work;
        int64_t                                                 choice_words; /* that there is room for */
    };

    planned *     find(const plong_shape & shape, const plong_backend & backend, bool checks = false);
    ggml_tensor * add_work(ggml_context * ctx, const plong_shape & shape, const plong_backend & backend, bool checks);

    const plong_plan & plan() const { return scope == PLONG_FULL ? state->config.plan : swa; }

    void prepare(const llama_ubatch & ubatch, const llama_cparams & cparams);
    void prepare(const llama_ubatch & ubatch);
    void collect(const llama_ubatch & ubatch);
    void pack();
    void set_checks() const;
    void count_chosen(const layer_choices & layer);
    void add_reads(const layer_choices & layer);
    void plan(planned & p) const;
    bool fits(); /* whether what was prepared fits into the tensors */
    void count();

    std::shared_ptr<plong_state> state;
    plong_scope                  scope;
    plong_plan                   swa; /* of window layers */
    mctx_fn                      mctx;
    int32_t                      n_tokens;
    int32_t                      n_head;
    uint32_t                     n_kv      = 0; /* cells of K in the graph */
    int32_t                      n_layers  = 0; /* that use this input */
    int32_t                      n_dense   = 0; /* of them */
    int32_t                      n_threads = 1;
    plong_batch_parts            parts;
    std::vector<int32_t>         packed;        /* parts as `batch` gets them */
    plong_checks                 found;         /* checks of the ubatch */
    std::vector<int32_t>         packed_checks; /* as `check_batch` gets them */
    int32_t                      n_checks = 0;  /* in the graph */
    std::vector<plong_checked>   checked;       /* layers */
    std::vector<layer_choices>   chosen;        /* only struct plong_choice of each tile */
    std::vector<layer_choices>   recorded;      /* whole, while the context records */
    std::vector<planned>         works;         /* for `packed` */
    bool                         ready = false; /* whether they belong to the ubatch that set_input() will get */
};
