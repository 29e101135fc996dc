/* rotate_cells.cpp - reads rows of cached K in any type, rotates them, and writes them back, on several threads. */
#include "rotate_cells.h"

#include <cmath>
#include <cstring>
#include <thread>

#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "plong_hooks.h"
#include "rotate.h"

namespace {

const size_t MIN_SPLIT = 1 << 14; /* rows of K; fewer are rotated by one thread */

/* Reads and writes rows of one K tensor as f32, wherever they are. */
class rows_of {
  public:
    rows_of(ggml_tensor * k, const plong_stored_k & stored)
        : k(k), stored(stored), traits(ggml_get_type_traits(k->type)), raw(ggml_row_size(k->type, k->ne[0])),
          x(k->ne[0]), host(ggml_backend_buffer_is_host(k->buffer)) {}

    void rotate(const plong_move & m, const float * angles) {
        const size_t at = m.cell * k->nb[1] + m.stream * k->nb[2];
        char *       p  = host ? static_cast<char *>(k->data) + at : raw.data();
        if (!host) {
            ggml_backend_tensor_get(k, raw.data(), at, raw.size());
        }
        const int64_t n = k->ne[0];
        if (k->type == GGML_TYPE_F32) {
            memcpy(x.data(), p, raw.size());
        } else {
            traits->to_float(p, x.data(), n);
        }
        if (stored.hadamard) {
            row_hadamard(x.data(), (int) n, stored.hadamard);
        }
        for (int64_t h = 0; h < n; h += stored.head) {
            row_rotate(x.data() + h + stored.rope->first, angles, stored.rope->n_rot, stored.rope->neox);
        }
        if (stored.hadamard) {
            row_hadamard(x.data(), (int) n, stored.hadamard);
        }
        if (k->type == GGML_TYPE_F32) {
            memcpy(p, x.data(), raw.size());
        } else {
            traits->from_float_ref(x.data(), p, n);
        }
        if (!host) {
            ggml_backend_tensor_set(k, raw.data(), at, raw.size());
        }
    }

  private:
    ggml_tensor *            k;
    const plong_stored_k &   stored;
    const ggml_type_traits * traits;
    std::vector<char>        raw;
    std::vector<float>       x;
    bool                     host;
};

/* The layers whose RoPE is the same, for a range of moves. */
void rotate_range(
    const llama_kv_cache & cache, const std::vector<std::pair<int32_t, const plong_stored_k *>> & layers,
    const std::vector<std::vector<double>> & kinds, const plong_move * begin, const plong_move * end) {
    std::vector<rows_of> rows;
    for (const auto & [il, stored] : layers) {
        rows.emplace_back(cache.get_k_storage(il), *stored);
    }
    const int          pairs = layers[0].second->rope->n_rot / 2;
    std::vector<float> angles(2 * pairs);
    for (const plong_move * m = begin; m < end; m++) {
        for (int i = 0; i < pairs; i++) {
            const double angle = fmod(kinds[m->kind][i] * (double) m->n, 2 * M_PI);
            angles[2 * i]      = (float) cos(angle);
            angles[2 * i + 1]  = (float) sin(angle);
        }
        for (rows_of & row : rows) {
            row.rotate(*m, angles.data());
        }
    }
}

} // namespace

llama_kv_cache * plong_plain_cache(llama_memory_i * memory) {
    if (auto * cache = dynamic_cast<llama_kv_cache *>(memory)) {
        return cache;
    }
    if (auto * cache = dynamic_cast<llama_kv_cache_iswa *>(memory)) {
        return cache->get_base();
    }
    if (auto * cache = dynamic_cast<llama_memory_hybrid *>(memory)) {
        return cache->get_mem_attn();
    }
    if (auto * cache = dynamic_cast<llama_memory_hybrid_iswa *>(memory)) {
        return cache->get_mem_attn()->get_base();
    }
    return nullptr;
}

void plong_rotate_cells(
    plong_state & state, const llama_kv_cache & cache, const std::vector<plong_move> & moves,
    const std::vector<plong_change> & changes) {
    for (const plong_move & m : moves) {
        plong_touch(&state, m.stream, m.cell);
    }
    std::map<plong_layer_rope *, std::vector<std::pair<int32_t, const plong_stored_k *>>> groups;
    for (const uint32_t il : cache.get_layer_ids()) {
        const auto found = state.stored.find((int32_t) il);
        if (found != state.stored.end() && found->second.rope && found->second.rope->n_rot > 0) {
            groups[found->second.rope.get()].emplace_back((int32_t) il, &found->second);
        }
    }
    for (const auto & [rope, layers] : groups) {
        std::vector<std::vector<double>> kinds;
        for (const plong_change & c : changes) {
            std::vector<double> f = rope->at(c.to).f;
            if (c.from > 0) {
                const std::vector<double> & before = rope->at(c.from).f;
                for (size_t i = 0; i < f.size(); i++) {
                    f[i] -= before[i];
                }
            }
            kinds.push_back(std::move(f));
        }
        const size_t             n_rows    = moves.size() * layers.size();
        const size_t             n_threads = n_rows < MIN_SPLIT ? 1 : std::max(1u, std::thread::hardware_concurrency());
        std::vector<std::thread> threads;
        for (size_t t = 0; t < n_threads; t++) {
            const plong_move * begin = moves.data() + moves.size() * t / n_threads;
            const plong_move * end   = moves.data() + moves.size() * (t + 1) / n_threads;
            if (n_threads == 1) {
                rotate_range(cache, layers, kinds, begin, end);
            } else {
                threads.emplace_back(rotate_range, std::cref(cache), std::cref(layers), std::cref(kinds), begin, end);
            }
        }
        for (std::thread & thread : threads) {
            thread.join();
        }
    }
}
