/* rescale.cpp - the factors of dynamic RoPE policies, one per sequence, and passes that rotate cached K. */
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "plong_state.h"
#include "rotate.h"

namespace {

const uint32_t MAGIC       = 0x31464c50; /* "PLF1": saved factors follow */
const size_t   WORTH_SPLIT = 1 << 14;    /* rows of K; fewer are rotated by one thread */

/* What happens to one cell: every layer's K is rotated by n times the frequencies of a kind. */
struct move {
    uint32_t cell;
    uint32_t stream;
    int64_t  n;
    int      kind;
};

/* What a pass applies: a shift (from 0) or the change from one factor to another. */
struct change {
    float from; /* 0: nothing */
    float to;
};

llama_kv_cache * plain_cache(llama_memory_i * memory) {
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

/* Reads and writes rows of one K tensor as f32, wherever they are. */
class rows_of {
  public:
    rows_of(ggml_tensor * k, const plong_stored_k & stored)
        : k(k), stored(stored), traits(ggml_get_type_traits(k->type)), raw(ggml_row_size(k->type, k->ne[0])),
          x(k->ne[0]), host(ggml_backend_buffer_is_host(k->buffer)) {}

    void turn(const move & m, const float * angles) {
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
            row_rotate(x.data() + h, angles, stored.rope->n_rot, stored.rope->neox);
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
void turn_range(
    const llama_kv_cache & cache, const std::vector<std::pair<int32_t, const plong_stored_k *>> & layers,
    const std::vector<std::vector<double>> & kinds, const move * begin, const move * end) {
    std::vector<rows_of> rows;
    for (const auto & [il, stored] : layers) {
        rows.emplace_back(cache.get_k_storage(il), *stored);
    }
    const int          pairs = layers[0].second->rope->n_rot / 2;
    std::vector<float> angles(2 * pairs);
    for (const move * m = begin; m < end; m++) {
        for (int i = 0; i < pairs; i++) {
            const double angle = fmod(kinds[m->kind][i] * (double) m->n, 2 * M_PI);
            angles[2 * i]      = (float) cos(angle);
            angles[2 * i + 1]  = (float) sin(angle);
        }
        for (rows_of & row : rows) {
            row.turn(*m, angles.data());
        }
    }
}

void turn_cells(
    plong_state & state, const llama_kv_cache & cache, const std::vector<move> & moves,
    const std::vector<change> & changes) {
    std::map<plong_layer_rope *, std::vector<std::pair<int32_t, const plong_stored_k *>>> groups;
    for (const uint32_t il : cache.get_layer_ids()) {
        const auto found = state.stored.find((int32_t) il);
        if (found != state.stored.end() && found->second.rope && found->second.rope->n_rot > 0) {
            groups[found->second.rope.get()].emplace_back((int32_t) il, &found->second);
        }
    }
    for (const auto & [rope, layers] : groups) {
        std::vector<std::vector<double>> kinds;
        for (const change & c : changes) {
            std::vector<double> f = rope->at(c.to).f;
            if (c.from > 0) {
                const std::vector<double> & before = rope->at(c.from).f;
                for (size_t i = 0; i < f.size(); i++) {
                    f[i] -= before[i];
                }
            }
            kinds.push_back(std::move(f));
        }
        const size_t n_rows    = moves.size() * layers.size();
        const size_t n_threads = n_rows < WORTH_SPLIT ? 1 : std::max(1u, std::thread::hardware_concurrency());
        std::vector<std::thread> threads;
        for (size_t t = 0; t < n_threads; t++) {
            const move * begin = moves.data() + moves.size() * t / n_threads;
            const move * end   = moves.data() + moves.size() * (t + 1) / n_threads;
            if (n_threads == 1) {
                turn_range(cache, layers, kinds, begin, end);
            } else {
                threads.emplace_back(turn_range, std::cref(cache), std::cref(layers), std::cref(kinds), begin, end);
            }
        }
        for (std::thread & thread : threads) {
            thread.join();
        }
    }
}

/* visit(cells, stream) for each stream of the cache. */
template <class F> void each_stream(const llama_kv_cache & cache, F visit) {
    std::vector<bool> seen(cache.get_n_stream(), false);
    for (uint32_t s = 0; s < cache.get_n_seq_max(); s++) {
        const uint32_t stream = cache.get_stream((llama_seq_id) s);
        if (!seen[stream]) {
            seen[stream] = true;
            visit(cache.get_cells((llama_seq_id) s), stream);
        }
    }
}

} // namespace

void plong_attach(plong_state * state, llama_memory_i * memory) {
    if (auto * cache = plain_cache(memory)) {
        cache->plong = state;
    }
}

bool plong_shift(plong_state * state, llama_kv_cache & cache) {
    if (!state || !state->enabled()) {
        return false;
    }
    if (!state->maps() && !state->scales()) {
        for (const uint32_t il : cache.get_layer_ids()) { /* upstream's pass does on other devices */
            const auto found = state->stored.find((int32_t) il);
            if (found == state->stored.end() || !found->second.rope ||
                !ggml_backend_buffer_is_host(cache.get_k_storage(il)->buffer)) {
                return false;
            }
        }
    }
    std::vector<move>    moves;
    std::vector<change>  changes;
    std::map<float, int> kind_of;
    each_stream(cache, [&](const llama_kv_cells & cells, uint32_t stream) {
        for (uint32_t i = 0; i < cells.size(); i++) {
            if (cells.is_empty(i) || cells.get_shift(i) == 0) {
                continue;
            }
            llama_seq_id seq = 0;
            while (!cells.seq_has(i, seq)) {
                seq++;
            }
            const llama_pos pos = cells.pos_get(i), before = pos - cells.get_shift(i);
            const int64_t   n        = (int64_t) plong_stored_pos(state, pos) - plong_stored_pos(state, before);
            const auto [kind, fresh] = kind_of.emplace(state->factor(seq), (int) changes.size());
            if (fresh) {
                changes.push_back({ 0.0f, kind->first });
            }
            if (n != 0) {
                moves.push_back({ i, stream, n, kind->second });
            }
        }
    });
    turn_cells(*state, cache, moves, changes);
    return true;
}

bool plong_copy_factor(plong_state * state, const llama_kv_cache & cache, llama_seq_id src, llama_seq_id dst) {
    if (!state || !state->dynamic() || src == dst || state->factor(src) == state->factor(dst)) {
        return true;
    }
    if (cache.get_stream(src) == cache.get_stream(dst) && cache.seq_pos_max(dst) >= 0) {
        LLAMA_LOG_ERROR(
            "%s: sequences %d and %d have RoPE factors %g and %g: empty the second one before cells are copied to it\n",
            __func__, src, dst, (double) state->factor(src), (double) state->factor(dst));
        return false;
    }
    state->factors[dst] = state->factor(src);
    return true;
}

void plong_write_factors(const plong_state * state, llama_io_write_i & io, llama_seq_id seq) {
    if (!state || !state->dynamic()) {
        return;
    }
    std::map<llama_seq_id, float> kept = state->factors;
    if (seq != -1) {
        kept = { { seq, state->factor(seq) } };
    }
    const uint32_t head[] = { MAGIC, (uint32_t) kept.size() };
    io.write(head, sizeof(head));
    for (const auto & [id, factor] : kept) {
        io.write(&id, sizeof(id));
        io.write(&factor, sizeof(factor));
    }
}

void plong_read_factors(plong_state * state, llama_io_read_i & io, llama_seq_id seq) {
    if (!state || !state->dynamic()) {
        return;
    }
    uint32_t head[2];
    io.read(head, sizeof(head));
    if (head[0] != MAGIC || head[1] > LLAMA_MAX_SEQ || (seq != -1 && head[1] != 1)) {
        throw std::runtime_error("the state was saved under another RoPE policy than the dynamic one of this context");
    }
    std::map<llama_seq_id, float> kept;
    for (uint32_t i = 0; i < head[1]; i++) {
        llama_seq_id id;
        float        factor;
        io.read(&id, sizeof(id));
        io.read(&factor, sizeof(factor));
        if (!(factor >= 1.0f && std::isfinite(factor))) {
            throw std::runtime_error("the state holds a RoPE factor that is none");
        }
        kept[seq == -1 ? id : seq] = factor;
    }
    if (seq == -1) {
        state->factors = std::move(kept);
    } else {
        state->factors[seq] = kept[seq];
    }
}

extern "C" {

int32_t plong_llama_set_rope_factor(llama_context * ctx, llama_seq_id seq, float factor, char * err, size_t n_err) {
    const auto fail = [&](const std::string & message) {
        snprintf(err, n_err, "%s", message.c_str());
        return -1;
    };
    plong_state & state = *ctx->get_cparams().plong;
    if (!state.dynamic()) {
        return fail("the RoPE policy of this context has no factor to choose: take dynamic-yarn or dynamic-ntk");
    }
    if (seq < 0 || (uint32_t) seq >= ctx->get_cparams().n_seq_max) {
        return fail("there is no sequence " + std::to_string(seq));
    }
    if (!(factor >= 1.0f && std::isfinite(factor))) {
        return fail("a RoPE factor is a finite number of 1 or more");
    }
    const float before = state.factor(seq);
    if (before == factor) {
        return 0;
    }
    ctx->synchronize();
    ctx->memory_update(false); /* pending shifts were requested under the old factor */
    if (llama_kv_cache * cache = plain_cache(llama_get_memory(ctx))) {
        const llama_kv_cells & cells = cache->get_cells(seq);
        std::vector<move>      moves;
        for (uint32_t i = 0; i < cells.size(); i++) {
            if (cells.is_empty(i) || !cells.seq_has(i, seq)) {
                continue;
            }
            if (cells.seq_count(i) > 1) {
                return fail(
                    "sequence " + std::to_string(seq) +
                    " shares cells with another one, which would be turned with it: evaluate its own copy");
            }
            if (cells.pos_get(i) != 0) {
                moves.push_back({ i, cache->get_stream(seq), cells.pos_get(i), 0 });
            }
        }
        turn_cells(state, *cache, moves, { { before, factor } });
    }
    state.factors[seq] = factor;
    return 0;
}

float plong_llama_rope_factor(const llama_context * ctx, llama_seq_id seq) {
    const plong_state & state = *ctx->get_cparams().plong;
    return state.dynamic() ? state.factor(seq) : 1.0f;
}
}
