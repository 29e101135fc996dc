/*
 * plong_llama.h - the API to configure a llama_context with a plan and a RoPE policy. Exported by libllama.
 */
#ifndef PLONG_LLAMA_H
#define PLONG_LLAMA_H

#include "ggml_ext.h"
#include "llama.h"

#ifdef __cplusplus
extern "C" {
#endif

struct plong_config {
    int32_t           abi;       /* PLONG_ABI_VERSION */
    int32_t           enabled;   /* 0: upstream's attention everywhere */
    int32_t           precision; /* enum plong_precision */
    struct plong_plan plan;
    struct plong_rope rope;
};

struct plong_stats {
    int64_t n_queries;    /* (token, head, layer) rows computed by the op */
    int64_t keys_visible; /* keys that exact attention would have read for them */
    int64_t keys_read;    /* keys read under the plan */
    int64_t n_tokens;     /* tokens decoded with the op on */
    int64_t n_runs;       /* runs of neighbouring cells, summed over batches and the sequences in them */
};

/* The configuration that the next llama_context of this thread starts with; NULL: off. */
LLAMA_API void plong_llama_configure_next(const struct plong_config * config);

/* Changes the configuration of a live context. The RoPE policy can only change while its KV cache is empty.
 * Returns 0, or -1 with one line in err. */
LLAMA_API int32_t
plong_llama_configure(struct llama_context * ctx, const struct plong_config * config, char * err, size_t n_err);

/* Tokens of seq at positions >= pos belong to the tail phase; pos < 0 forgets it. Without it, a token that is evaluated
 * alone (decode) is tail, one in a larger ubatch is prefill. */
LLAMA_API void plong_llama_set_tail(struct llama_context * ctx, llama_seq_id seq, llama_pos pos);

/* Sets the factor of a sequence under a dynamic RoPE policy. Its cached keys are rotated to the new factor in one pass,
 * which only changes the frequencies that differ. Returns 0, or -1 with one line in err and nothing changed: the policy
 * is not dynamic, or the sequence shares cells with another one. */
LLAMA_API int32_t
plong_llama_set_rope_factor(struct llama_context * ctx, llama_seq_id seq, float factor, char * err, size_t n_err);
/* 1 for policies that are not dynamic. */
LLAMA_API float plong_llama_rope_factor(const struct llama_context * ctx, llama_seq_id seq);

LLAMA_API void plong_llama_stats(const struct llama_context * ctx, struct plong_stats * stats);
LLAMA_API void plong_llama_stats_reset(struct llama_context * ctx);

/* The error of the plan in a head, as measured at the rows of plong_plan.check: sums over `rows` of the squares of exact
 * - sparse and of exact, before any correction, and the largest quotient of their roots. */
struct plong_error {
    int32_t layer, head;
    int64_t rows;
    double  error, norm;
    double  most;
};

/* Writes at most n of them, by layer and head, and returns how many there are; plong_llama_stats_reset() forgets them. */
LLAMA_API size_t plong_llama_errors(const struct llama_context * ctx, struct plong_error * out, size_t n);

/* Begins anew, or ends, to count which keys each layer reads. */
LLAMA_API void plong_llama_record(struct llama_context * ctx, bool on);

/* Writes how many rows (token, head) of a layer read the keys at positions 0 .. n, and returns how many positions are known.
 * Rows that checks compute again are not counted. */
LLAMA_API size_t plong_llama_reads(const struct llama_context * ctx, int32_t layer, double * out, size_t n);

/* One line per layer with attention, "<layer>\t<reason>\t<window>\n", as of the last graph that was built: the reason is
 * empty when the op takes the layer, and the window says what it reads whatever the plan, empty when it follows the plan.
 * Returns the length of the whole text. */
LLAMA_API size_t plong_llama_layers(const struct llama_context * ctx, char * buf, size_t n);
/* The same layers, "<layer>\t<reason>\n": why a RoPE policy leaves the layer's positions alone, by design, or nothing. */
LLAMA_API size_t plong_llama_native_layers(const struct llama_context * ctx, char * buf, size_t n);

/* ---- trying a file out ------------------------------------------------------------------------------------------ */

#define PLONG_PROBE_LENGTHS 8
#define PLONG_PROBE_TEXT    512
#define PLONG_PROBE_LAYERS  65536

struct plong_probe {
    const char *                           path;
    const char *                           lora;      /* an adapter, or NULL */
    const struct llama_model_kv_override * overrides; /* or NULL */
    struct llama_context_params            context;   /* parameters of the contexts that will be opened */
    int32_t                                n_lengths;
    uint32_t                               lengths[PLONG_PROBE_LENGTHS]; /* contexts whose memory is wanted */
};

struct plong_probed {
    int64_t memory[PLONG_PROBE_LENGTHS];  /* bytes of K, V and states; -1: no such context opens */
    char    no_scaling[PLONG_PROBE_TEXT]; /* why no frequency rule can be used, or "" */
    char    no_map[PLONG_PROBE_TEXT];     /* why no position map can be used with log-n, or "" */
    char    error[PLONG_PROBE_TEXT];
    char    layers[PLONG_PROBE_LAYERS]; /* as from plong_llama_layers() */
};

/* Bytes that the indexes of keys take once the whole context was read; 0 if the plan wants none. */
LLAMA_API int64_t plong_llama_index_memory(const struct llama_context * ctx);

/* Bytes of K, V and states of a context. */
LLAMA_API int64_t plong_llama_memory(const struct llama_context * ctx);

/* Loads a model without its weights, opens contexts, and decodes some tokens. Anything in the file that can end a
 * process ends this one. Returns 0; 1 if llama.cpp refuses the file (its log says why); 2 for an exception that left
 * llama.cpp. */
LLAMA_API int32_t plong_llama_probe(const struct plong_probe * probe, struct plong_probed * out);

#ifdef __cplusplus
}
#endif

#endif
