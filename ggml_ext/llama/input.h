/* input.h - the op's inputs: what it must know about each ubatch, and the work planned from that for layers of each
 * shape. */
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "backend.h"
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

    llm_graph_input_plong(const llm_graph_context & graph, plong_scope scope, mctx_fn mctx, int32_t n_head);

    void set_input(const llama_ubatch * ubatch) override;
    bool can_reuse(const llm_graph_params & params) override;

    /* The I32 tensor with the work of a layer of this shape, planned for its backend. */
    ggml_tensor * work(ggml_context * ctx, const plong_shape & shape, const plong_backend & backend);

    /* Words of the choices of such a layer, with room to grow; 0: it chooses no keys in this ubatch. */
    int64_t choice_words(const plong_shape & shape, const plong_backend & backend);

    /* The stream of the cache from which those of the ubatch are counted. */
    uint32_t first_stream() const;

    /* Each token of a ubatch is counted once, by one of the graph's inputs. */
    bool counts_tokens = true;

    /* Whether the work of layer il is that of exact attention, whatever the plan. */
    bool is_dense(int32_t il) const;

    ggml_tensor * batch = nullptr; /* I32 [words] */

  private:
    /* Work that layers share. */
    struct planned {
        plong_shape                                             shape;
        const plong_backend *                                   backend;
        ggml_tensor *                                           tensor;
        std::unique_ptr<plong_work, decltype(&plong_work_free)> work;
        int64_t                                                 choice_words; /* that there is room for */
    };

    planned * find(const plong_shape & shape, const plong_backend & backend);

    const plong_plan & plan() const { return scope == PLONG_FULL ? state->config.plan : swa; }

    void prepare(const llama_ubatch & ubatch, const llama_cparams & cparams);
    void prepare(const llama_ubatch & ubatch);
    void collect(const llama_ubatch & ubatch);
    void pack();
    void plan(planned & p) const;
    bool fits() const; /* whether what was prepared fits into the tensors */
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
    std::vector<planned>         works;         /* for `packed` */
    bool                         ready = false; /* whether they belong to the ubatch that set_input() will get */
};
