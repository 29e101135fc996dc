/* factors.cpp - the factors of dynamic RoPE policies: one per sequence, which all of its cached K has. */
#include <cmath>

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-kv-cache.h"
#include "llama-model.h"
#include "plong_hooks.h"
#include "rotate_cells.h"

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
    if (llama_kv_cache * cache = plong_plain_cache(llama_get_memory(ctx))) {
        if (ctx->get_model().hparams.n_pos_per_embd() >= 3 && plong_holds_images(*cache)) {
            return fail("the cache holds images, whose keys cannot be rotated to another factor: start a new text");
        }
        const llama_kv_cells &  cells = cache->get_cells(seq);
        std::vector<plong_move> moves;
        for (uint32_t i = 0; i < cells.size(); i++) {
            if (cells.is_empty(i) || !cells.seq_has(i, seq)) {
                continue;
            }
            if (cells.seq_count(i) > 1) {
                return fail(
                    "sequence " + std::to_string(seq) +
                    " shares cells with another one, which would be rotated with it: evaluate its own copy");
            }
            if (cells.pos_get(i) != 0) {
                moves.push_back({ i, cache->get_stream(seq), cells.pos_get(i), 0 });
            }
        }
        plong_rotate_cells(state, *cache, moves, { { before, factor } });
    }
    state.factors[seq] = factor;
    return 0;
}

float plong_llama_rope_factor(const llama_context * ctx, llama_seq_id seq) {
    const plong_state & state = *ctx->get_cparams().plong;
    return state.dynamic() ? state.factor(seq) : 1.0f;
}
}
