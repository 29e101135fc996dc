/* plong_state.h - what a llama_context keeps for the extension. C++, internal to libllama. */
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "ggml-cpp.h"
#include "plong_llama.h"

class llama_kv_cache;
struct llama_memory_i;
struct llm_graph_context;

/* A constant of the graph in a buffer of its own: frequency factors [n_rot/2], or a rotation table. */
struct plong_constant {
    ggml_backend_buffer_ptr buffer;
    int64_t                 ne;
    ggml_tensor *           tensor(ggml_context * ctx, const char * name) const;
};

struct plong_layer_rope;

/* What a node of the graph rotates: a layer's queries, or its keys. */
struct plong_rope_side {
    const plong_layer_rope * rope  = nullptr;
    bool                     query = false; /* carries the square of the magnitude, so that cached K has none */
    int32_t                  first = 0;     /* of the rotated dims in the node's rows */
};

/* RoPE of one layer as read from its graph node, and the policy on top of it. */
struct plong_layer_rope {
    struct rotation {
        std::vector<double> f;     /* [n_rot/2] radians per position */
        std::vector<float>  table; /* PLONG_ROPE_TABLE_FLOATS; empty when the frequencies are the node's own */
        float               magnitude = 1.0f;
    };

    int32_t              n_rot = 0;
    int32_t              first = 0; /* of the rotated dims in a head */
    bool                 neox  = false;
    std::vector<uint8_t> sections; /* [n_rot/2], M-RoPE: which of a token's positions rotates the pair; else empty */
    std::vector<float>   own;      /* [n_rot/2], what the model's file divides the frequencies by; else empty */
    float                base     = 0.0f;
    plong_rope           policy   = {};
    plong_rope_side      sides[2] = {}; /* of queries, of keys */

    std::map<float, rotation>       rotations; /* by factor; complete before a graph runs */
    std::shared_ptr<plong_constant> factors;   /* for ggml's own RoPE: divides the base frequencies; null: unused */
    std::shared_ptr<plong_constant> table;     /* for the op; null when the position map is absolute */

    const rotation & at(float factor); /* computes it when it is new */
};

/* The index of the keys in a K tensor of the cache (choose.h). */
struct plong_index {
    ggml_backend_buffer_ptr buffer;
    int64_t                 ne[3] = {}; /* bytes of a page, pages, kv heads */
    /* I8, of the streams from `stream` on */
    ggml_tensor * tensor(ggml_context * ctx, int64_t stream, int64_t n_stream) const;
};

/* The K in the cache that a layer reads: its own, or that of a layer that shares it. */
struct plong_stored_k {
    std::shared_ptr<plong_layer_rope> rope;         /* null or n_rot = 0: the layer has no RoPE */
    int32_t                           head     = 0; /* dims of a head */
    int32_t                           hadamard = 0; /* K is Hadamard-rotated in blocks of this many dims; 0: no */
    std::string                       unrotated;    /* why no RoPE policy can be applied to the layer, or "" */
};

/* Shared by the context and its graphs; lives until the last of them is gone. */
struct plong_state {
    plong_config config = {};

    std::map<int32_t, std::string>    layers;  /* il -> why upstream's path runs it, empty when the op does */
    std::map<int32_t, std::string>    windows; /* il -> what a layer with a window of its own reads */
    std::map<llama_seq_id, llama_pos> tails;
    std::map<std::string, std::shared_ptr<plong_layer_rope>> ropes;           /* by the parameters of the node */
    std::map<int32_t, plong_stored_k>                        stored;          /* il -> the cached K that it reads */
    const llama_kv_cache *                                   cache = nullptr; /* of the layers with full attention */
    std::map<llama_seq_id, float>                            factors;         /* of dynamic policies, where set */
    plong_stats                                              stats = {};
    std::map<int32_t, std::vector<plong_error>>              meter; /* il -> of each head */
    std::map<int32_t, std::vector<double>>                   reads; /* il -> [positions], while it records */
    bool                                                     recording = false;

    std::map<const ggml_tensor *, std::shared_ptr<plong_index>> indexes; /* by K; none where the plan wants none */
    std::vector<std::vector<bool>> indexed; /* [stream][page]: all indexes have the keys that are in its cells */

    bool enabled() const { return config.enabled != 0; }
    bool maps() const { return enabled() && config.rope.map != PLONG_MAP_ABSOLUTE; }
    bool scales() const { return enabled() && config.rope.freq != PLONG_FREQ_NATIVE; }
    bool dynamic() const { return enabled() && config.rope.dynamic; }

    float factor(llama_seq_id seq) const {
        const auto it = factors.find(seq);
        return dynamic() && it != factors.end() ? it->second : config.rope.factor;
    }
};
