/*
 * ggml_ext.h - long-context attention for ggml: the only public header of ggml_ext.
 *
 * What it computes, for a query at position p of head h, over the keys of its own sequence at positions t <= p:
 *
 *     logit(t) = cap(scale * < R(p'(p,t)) q, R(t'(t)) k_t > * logn(p)) - slope(h) * (p - t) + log_w(p,t,h)
 *     out      = sum over t in S(p,h) of softmax(logit)(t) * v_t
 *
 * S and log_w come from the attention plan (plan.c), p', t' and the frequencies from the RoPE policy (rope.c). Some
 * models have more: slope is the bias of ALiBi, else 0; cap(x) = c * tanh(x / c) in models that cap their logits
 * softly, else x; and an attention sink is one more logit per head in the softmax, whose value is zero.
 *
 * How to think of it: a batch describes a ubatch, a plan says which keys its queries read, a policy at which distances,
 * and the op computes. Everything here is plain data: structs of int32/float that Python mirrors with ctypes, and that
 * a GPU can copy.
 */
#ifndef GGML_EXT_H
#define GGML_EXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PLONG_API GGML_API

#define PLONG_ABI_VERSION  12
#define PLONG_MAX_BRANCHES 16
#define PLONG_ALL          INT32_MAX /* a count that means "every key" */
#define PLONG_LONGEST      (1 << 30) /* largest segment, rate, chunk or window: the sum of two does not overflow */

/* ---- attention plan ------------------------------------------------------------------------------------------- */

enum plong_weight {
    PLONG_WEIGHT_COUNT  = 0, /* a key that m branches read counts m times: the denominators of LongNet, eq. 10 */
    PLONG_WEIGHT_STRIDE = 1, /* a key of a branch with rate r stands for r keys: log_w = log r                  */
    PLONG_WEIGHT_NONE   = 2, /* each key once                                                                   */
};

enum plong_align {
    PLONG_ALIGN_SEGMENT = 0, /* LongNet: segments start at multiples of w; rows outside the dilated set of a branch
                                read nothing from it */
    PLONG_ALIGN_QUERY   = 1, /* the segment slides: the last w positions before the query, every row reads */
};

/* One phase of a plan: a union of parts. All counts are tokens. A zeroed phase reads nothing; `exact` is
 * {.window = PLONG_ALL}. `sinks` and `global` tokens are the first ones of the sequence. */
struct plong_phase {
    int32_t sinks;
    int32_t window;
    int32_t global;
    int32_t dense_below; /* queries at positions below this read every key */
    int32_t weight;      /* enum plong_weight */
    int32_t align;       /* enum plong_align */
    int32_t n_branches;
    int32_t segment[PLONG_MAX_BRANCHES]; /* w_k, ascending */
    int32_t rate[PLONG_MAX_BRANCHES];    /* r_k >= 1; r_k <= w_k */
    /* topk: blocks of keys between the sinks and the window, chosen by content for each kv head and query block */
    int32_t top_blocks; /* at most this many; 0: the phase chooses none; PLONG_ALL: no limit */
    int32_t top_least;  /* at least this many, also when fewer have the mass */
    int32_t top_block;  /* keys of a block: 16, 32 or 64 */
    float   top_share;  /* at most this share of the blocks; 1: no limit */
    float   top_mass;   /* no more once their estimated share of the softmax reaches this; 1: no limit */
    /* lsh: the keys between the sinks and the window whose hashes are nearest to those of the queries (lsh.h) */
    int32_t lsh_keys;  /* at most this many; 0: none; PLONG_ALL: no limit */
    float   lsh_share; /* at most this share of the keys; 1: no limit */
    /* sample: of the other keys between the sinks and the window, one in each of as many strata, which stands for all of
     * its stratum */
    int32_t sample;       /* strata, at most; 0: the phase samples none; PLONG_ALL: no limit */
    int32_t sample_seed;  /* of the random numbers, which are a hash of it and of the place of a stratum */
    float   sample_share; /* at most this share of the keys; 1: no limit */
    /* verified: of the other keys as many strata as it takes for the relative errors of numerator and denominator to stay
     * under eps with probability 1 - delta; then sample is 0 */
    float verify_eps; /* 0: the phase does not */
    float verify_delta;
    /* of topk, lsh, sample and verified */
    int32_t
        query_block; /* queries at positions [i * query_block, (i + 1) * query_block) choose together: PLONG_PAGE, 1 */
};

struct plong_plan {
    struct plong_phase phase[2];     /* [0] prefill, [1] tail: the last turn's tokens and the answer */
    int32_t            dense_layers; /* layers below this index read every key */
    int32_t            check;   /* queries at multiples of this position also read every key: 16, 32, 64; 0: none */
    int32_t            correct; /* 1: what they read beside the plan's keys corrects those after them in the prefill */
    float              error;   /* prefill: choices grow until the relative error of those queries is at most this */
};

/* NULL when the plan can be run, else one line that says what is wrong. */
PLONG_API const char * plong_plan_check(const struct plong_plan * plan);

/* The number h of a query head in dilated attention, where it sets the offset h mod r of a branch with rate r (LongNet:
 * "s_j = j mod r"). Heads are numbered across kv heads: those that share K and V get the same offset, and so read the
 * same keys, if there are enough kv heads for all offsets. */
PLONG_API int32_t plong_head_number(int32_t head, int32_t n_head, int32_t n_head_kv);

/* Writes the keys that (query position p, query head number h) reads, ascending, with log_w, and returns their number
 * (which may exceed cap; nothing is written beyond it). A brute-force listing: for tests and drawings. */
PLONG_API int64_t
plong_phase_keys(const struct plong_phase * phase, int32_t p, int32_t h, int64_t cap, int32_t * pos, float * log_w);

/* The number of keys that the query reads, counting each position once, without listing them. */
PLONG_API int64_t plong_phase_count(const struct plong_phase * phase, int32_t p, int32_t h);

/* ---- RoPE policy ---------------------------------------------------------------------------------------------- */

enum plong_freq {
    PLONG_FREQ_NATIVE   = 0, /* what the model's graph does, untouched */
    PLONG_FREQ_LINEAR   = 1, /* position interpolation: theta / s */
    PLONG_FREQ_NTK      = 2, /* base * s^(d/(d-2)) */
    PLONG_FREQ_YARN     = 3, /* arXiv 2309.00071: ramp between theta and theta / s, magnitude 0.1 ln s + 1 */
    PLONG_FREQ_LLAMA3   = 4, /* Llama 3.1's wavelength bands */
    PLONG_FREQ_LONGROPE = 5, /* factors per dimension, magnitude sqrt(1 + ln s / ln L) */
};

enum plong_map {
    PLONG_MAP_ABSOLUTE    = 0, /* distance p - t */
    PLONG_MAP_DCA         = 1, /* Dual Chunk Attention, arXiv 2402.17463 */
    PLONG_MAP_SELF_EXTEND = 2, /* arXiv 2401.01325 */
    PLONG_MAP_REROPE      = 3, /* distance min(p - t, window) */
};

#define PLONG_MAX_ROT 512 /* largest n_rot */

struct plong_rope {
    int32_t freq;      /* enum plong_freq */
    float   factor;    /* s >= 1 */
    float   beta_fast; /* YaRN, 32 */
    float   beta_slow; /* YaRN, 1 */
    float   low_freq;  /* Llama 3, 1 */
    float   high_freq; /* Llama 3, 4 */
    int32_t map;       /* enum plong_map */
    int32_t chunk;     /* DCA: chunk size (keys sit at t mod (chunk - local)); Self-Extend: group G; ReRoPE: window */
    int32_t local;     /* DCA: local window; Self-Extend: neighbour window W */
    int32_t logn;      /* 1: q times max(1, ln(p+1) / ln(n_train)) */
    int32_t n_train;   /* L, the trained length */
    int32_t dynamic;   /* 1: ntk or yarn whose factor belongs to each sequence (plong_llama_set_rope_factor);
                          `factor` is then the one that a sequence begins with */
    int32_t n_factors; /* LongRoPE: n_rot / 2 */
    float   factors[PLONG_MAX_ROT / 2];
};

PLONG_API const char * plong_rope_check(const struct plong_rope * rope);

/* Angular frequencies f[n_rot/2] (radians per position) of a policy over a model's base; returns the magnitude that
 * cos and sin are multiplied with. model_factors [n_rot/2] divides the native frequencies, or NULL. */
PLONG_API float plong_rope_freqs(
    const struct plong_rope * rope, int32_t n_rot, double base, const float * model_factors, double * f);

/* The position at which a key (or query) at position t is rotated before it is stored. */
PLONG_API int32_t plong_rope_stored(const struct plong_rope * rope, int32_t t);

/* Relative distance that the policy gives to a query at p and a key at t <= p. */
PLONG_API int32_t plong_rope_distance(const struct plong_rope * rope, int32_t p, int32_t t);

/* log-n factor of a query at position p. */
PLONG_API float plong_rope_logn(const struct plong_rope * rope, int32_t p);

/* Rotation table [4][256][n_rot/2][2]: cos and sin of f * digit * 256^level, so that any position below 2^32 is the
 * product of four entries (each within half an ulp of the true value). */
#define PLONG_ROPE_TABLE_FLOATS(n_rot) (4 * 256 * (size_t) (n_rot))
PLONG_API void plong_rope_table(const double * f, int32_t n_rot, float * table);

/* Writes cos and sin of f * position for n positions, [n][n_rot/2][2], the way the kernels read the table. */
PLONG_API void plong_rope_angles(const float * table, int32_t n_rot, const int64_t * pos, int64_t n, float * out);

/* ---- index of keys -------------------------------------------------------------------------------------------- */

/* Where a plan chooses keys by content, each layer has an index of them (choose.h), in pages of this many neighbouring
 * cells, per stream and kv head. */
#define PLONG_PAGE 64

/* What an index has of each key. */
#define PLONG_INDEX_DIGITS 1 /* its dims in 4 bits, for topk */
#define PLONG_INDEX_RANKS  2 /* its hash, for lsh */

/* What the index of a plan has: 0, or one of these, or both. */
PLONG_API int32_t plong_plan_index(const struct plong_plan * plan);

/* Bytes of an index of keys with d_k dims. */
PLONG_API size_t plong_index_bytes(int32_t parts, int32_t d_k, int32_t n_head_kv, int64_t n_cells, int64_t n_stream);

/* ---- batch ---------------------------------------------------------------------------------------------------- */

/* What the op needs to know about one ubatch, in a flat I32 tensor, so that a graph can be reused with new contents:
 *   struct plong_batch, then slots, groups, runs, pages, checks. */
struct plong_slot {  /* one sequence of the ubatch */
    int32_t stream;  /* index into dim 3 of K and V */
    int32_t run_beg; /* its cells: runs[run_beg .. run_end), ascending in position */
    int32_t run_end;
};

struct plong_group { /* consecutive tokens of one sequence and phase */
    int32_t slot;
    int32_t phase; /* index into plong_plan.phase */
    int32_t tok;   /* first token of the ubatch */
    int32_t n;     /* tokens tok .. tok+n, at positions pos .. pos+n, or as far apart as the batch's step */
    int32_t pos;
};

struct plong_run { /* cells cell .. cell+n hold the keys at positions pos .. pos+n */
    int32_t pos;
    int32_t cell;
    int32_t n;
};

struct plong_page { /* cells PLONG_PAGE * page .. of a stream, whose keys the index does not have yet */
    int32_t stream;
    int32_t page;
};

enum plong_precision {
    PLONG_PRECISION_AUTO = 0, /* the fastest that the processor has: bf16 products with float32 sums if any */
    PLONG_PRECISION_F32  = 1, /* float32 throughout, and no key is skipped */
};

struct plong_batch {
    int32_t           n_slots;
    int32_t           n_groups;
    int32_t           n_runs;
    int32_t           n_pages;
    int32_t           n_checks; /* tokens, ascending, for which the exact result is known (plong_plan.check) */
    int32_t           n_tokens;
    int32_t           precision; /* enum plong_precision */
    int32_t           step;      /* between positions of neighbouring tokens; more than 1 only if all keys are read */
    struct plong_plan plan;
    struct plong_rope rope;
};

/* int32 words of a batch with these counts. */
PLONG_API size_t
plong_batch_words(int32_t n_slots, int32_t n_groups, int32_t n_runs, int32_t n_pages, int32_t n_checks);
PLONG_API const struct plong_slot *  plong_batch_slots(const struct plong_batch * b);
PLONG_API const struct plong_group * plong_batch_groups(const struct plong_batch * b);
PLONG_API const struct plong_run *   plong_batch_runs(const struct plong_batch * b);
PLONG_API const struct plong_page *  plong_batch_pages(const struct plong_batch * b);
PLONG_API const int32_t *            plong_batch_checks(const struct plong_batch * b);

/* ---- the op --------------------------------------------------------------------------------------------------- */

struct plong_attn_params {
    float   scale;
    float   max_bias; /* ALiBi (arXiv 2108.12409): 8 in the paper; 0: none */
    float   soft_cap; /* logits become soft_cap * tanh(logit / soft_cap) (Gemma 2, arXiv 2408.00118); 0: they do not */
    int32_t layer;
    int32_t n_rot;     /* 0: this layer has no RoPE: position maps leave it alone */
    int32_t rot_first; /* first of the n_rot rotated dims of a head */
    int32_t neox;      /* 1: pairs (i, i + n_rot/2); 0: pairs (2i, 2i + 1) */
    int32_t
        hadamard; /* K was Hadamard-rotated in blocks of this many dims after RoPE, and q was NOT: the op does; 0: no */
};

/* What a layer's op gets besides q, k and v. */
struct plong_inputs {
    struct ggml_tensor * batch; /* I32 [words] struct plong_batch */
    struct ggml_tensor * work;  /* I32 [words] struct plong_work, of this batch and the layer's shape */
    struct ggml_tensor * table; /* F32 [PLONG_ROPE_TABLE_FLOATS(n_rot)], or NULL when the position map is absolute */
    struct ggml_tensor * sink_logits; /* F32 [n_head] of the model's attention sinks, or NULL */
    struct ggml_tensor * choices;     /* I32 of ggml_long_choose(), or NULL where the work chooses no keys */
    struct ggml_tensor * index;       /* I8 of the layer: for plans that want one: plong_plan_wants_index(); or NULL */
    struct ggml_tensor * exact; /* F32 [d_v, n_head, n] exact results of the batch's checks, or NULL: for choosing */
};

/* q     F32 [d_k, n_head, n_tokens]
 * k     F32|F16|BF16|Q8_0|Q4_0|Q4_1|Q5_0|Q5_1|IQ4_NL [d_k, n_head_kv, n_kv, n_stream]
 * v     any of these types [d_v, n_head_kv, n_kv, n_stream]
 * ->    F32 [d_v, n_head, n_tokens]
 * Whether a backend runs it: plong_backend_supports() in backend.h. */
PLONG_API struct ggml_tensor * ggml_long_attn(
    struct ggml_context * ctx, struct ggml_tensor * q, struct ggml_tensor * k, struct ggml_tensor * v,
    const struct plong_inputs * inputs, const struct plong_attn_params * params);

/* Chooses the keys that the tiles of the work read by content.
 * q, k, v   as above
 * index  I8 [bytes of a page, pages, n_head_kv, n_stream] of the layer; the pages that the batch lists are written first
 * ->     I32 [n_words], at least plong_work_choice_words() of the work: struct plong_choice of each tile, then key ranges
 * Other layers of the same shape may use the result too. */
PLONG_API struct ggml_tensor * ggml_long_choose(
    struct ggml_context * ctx, struct ggml_tensor * q, struct ggml_tensor * k, struct ggml_tensor * v,
    const struct plong_inputs * inputs, const struct plong_attn_params * params, int64_t n_words);

/* ---- CPU backend ---------------------------------------------------------------------------------------------- */

/* Names of the instruction sets compiled in, best first; NULL past the last. */
PLONG_API const char * plong_cpu_isa_name(int i);
/* Whether this processor can run it. */
PLONG_API bool plong_cpu_isa_usable(int i);
/* Forces one by name ("" or NULL: the best usable). False: unknown or not usable here; nothing changes.
 * The environment variable PLLAMA_ISA does the same at the first call of the op. */
PLONG_API bool plong_cpu_isa_force(const char * name);
/* The one in use at a precision, of enum plong_precision: one that multiplies bf16 leaves float32 to another. */
PLONG_API const char * plong_cpu_isa(int32_t precision);
/* Query tiles that instruction set i has computed in this process: proof that a forced one ran. */
PLONG_API int64_t plong_cpu_isa_tiles(int i);

/* ---- products with quantized weights (cpu/product/product.h) ---- */

/* The codes for products, best first (NULL past the end), and whether this processor can run one of them. */
PLONG_API const char * plong_product_name(int i);
PLONG_API bool         plong_product_usable(int i);

/* Forces one of them, or "upstream"; "" or NULL: the best usable one. False: it is unknown, or not usable here. */
PLONG_API bool plong_product_force(const char * name);

/* The one in use, or "upstream", and tiles that one has computed in this process. */
PLONG_API const char * plong_product(void);
PLONG_API int64_t      plong_product_tiles(int i);

/* Whether products with weights of a type, enum ggml_type, are computed here. */
PLONG_API bool plong_product_takes_type(int type);

#ifdef __cplusplus
}
#endif

#endif
