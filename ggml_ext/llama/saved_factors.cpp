/* saved_factors.cpp - the factors of dynamic RoPE policies in saved states, before upstream's data. */
#include <cmath>
#include <stdexcept>

#include "llama-cparams.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "plong_hooks.h"

namespace {

const uint32_t MAGIC = 0x31464c50; /* "PLF1": saved factors follow */

} // namespace

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
            throw std::runtime_error("the state holds a RoPE factor that is not a finite number of 1 or more");
        }
        kept[seq == -1 ? id : seq] = factor;
    }
    if (seq == -1) {
        state->factors = std::move(kept);
    } else {
        state->factors[seq] = kept[seq];
    }
}
