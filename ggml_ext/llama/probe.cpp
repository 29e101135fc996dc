/* probe.cpp - tries out everything in a model file that can end a process, in a process that may end: all of its
 * metadata, its vocabulary, its graphs, and some decoded tokens, with a run of zero pages as weights. */
#include <sys/types.h>

#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "llama-adapter.h"
#include "llama-context.h"
#include "llama-model.h"
#include "plan.h"
#include "plong_llama.h"

#ifdef _WIN32
#include <windows.h>
#else
#include <sys/mman.h>
#endif

namespace {

constexpr int64_t  LONGEST_DECODE_US = 2000000; /* the remaining layers are of kinds that were already computed */
constexpr uint32_t N_CTX             = 256;
constexpr int32_t  N_PROMPT          = 8;

/* Zero bytes that take no memory until they are written. Null if the system provides none. */
void * zero_pages(size_t size) {
#ifdef _WIN32
    return VirtualAlloc(nullptr, size, MEM_RESERVE | MEM_COMMIT, PAGE_READONLY);
#else
    void * p = mmap(nullptr, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? nullptr : p;
#endif
}

/* Gives every weight the same zeros. */
bool put_zeros(llama_model & model, ggml_backend_buffer_ptr & buffer) {
    size_t size = 1;
    for (const auto & [name, t] : model.tensors_by_name) {
        size = std::max(size, ggml_nbytes(t));
    }
    size += 4096; /* kernels may read whole vectors at the end of a row */
    void * zeros = zero_pages(size);
    if (!zeros) {
        return false;
    }
    buffer.reset(ggml_backend_cpu_buffer_from_ptr(zeros, size));
    ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    for (const auto & [name, t] : model.tensors_by_name) {
        t->data   = zeros;
        t->buffer = buffer.get();
    }
    return true;
}

/* The default configuration of a context: exact attention and the model's own RoPE. */
plong_config exact() {
    plong_config config  = {};
    config.abi           = PLONG_ABI_VERSION;
    config.enabled       = 1;
    config.plan.phase[0] = *plong_batch_phase(nullptr, PLONG_PHASE_EXACT);
    config.plan.phase[1] = config.plan.phase[0];
    config.rope.factor   = 1.0f;
    return config;
}

/* Writes why the context refuses a RoPE policy, or nothing. */
void ask(llama_context * ctx, const plong_rope & rope, char * reason, size_t n) {
    plong_config config = exact();
    config.rope         = rope;
    reason[0]           = '\0';
    plong_llama_configure(ctx, &config, reason, n);
}

/* Bytes of the memory of a context, which is not allocated where it grows with the context; -1 if none opens. */
int64_t memory_bytes(llama_model & model, llama_context_params params, uint32_t n_ctx) {
    params.n_ctx           = n_ctx;
    model.hparams.no_alloc = true;
    std::unique_ptr<llama_context, decltype(&llama_free)> ctx(llama_init_from_model(&model, params), llama_free);
    const int64_t                                         total = ctx ? plong_llama_memory(ctx.get()) : -1;
    ctx.reset();
    model.hparams.no_alloc = false;
    return total;
}

bool late(void * until) { return ggml_time_us() > *static_cast<int64_t *>(until); }

void decode(llama_context * ctx, const llama_model * model) {
    int64_t until = ggml_time_us() + LONGEST_DECODE_US;
    llama_set_abort_callback(ctx, late, &until);
    const int32_t            n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    std::vector<llama_token> tokens(N_PROMPT);
    for (int32_t i = 0; i < N_PROMPT; i++) {
        tokens[i] = n_vocab > 0 ? i % n_vocab : 0;
    }
    if (llama_model_has_encoder(model)) {
        llama_encode(ctx, llama_batch_get_one(tokens.data(), N_PROMPT));
        if (!llama_model_has_decoder(model)) {
            return;
        }
    }
    if (llama_decode(ctx, llama_batch_get_one(tokens.data(), N_PROMPT)) == 0) {
        llama_decode(ctx, llama_batch_get_one(tokens.data(), 1));
    }
}

} // namespace

extern "C" int64_t plong_llama_memory(const llama_context * ctx) {
    int64_t total = 0;
    for (const auto & [buft, bytes] : ctx->memory_breakdown()) {
        total += (int64_t) bytes.context;
    }
    return total;
}

extern "C" int32_t plong_llama_probe(const struct plong_probe * ask_for, struct plong_probed * out) {
    *out            = {};
    const auto fail = [&](int32_t code, const char * message) {
        snprintf(out->error, sizeof(out->error), "%s", message);
        return code;
    };
    try {
        llama_model_params params = llama_model_default_params();
        params.n_gpu_layers       = 0;
        params.load_mode          = LLAMA_LOAD_MODE_NONE;
        params.use_extra_bufts    = false;
        params.no_alloc           = true;
        params.kv_overrides       = ask_for->overrides;
        std::unique_ptr<llama_model, decltype(&llama_model_free)> model(
            llama_model_load_from_file(ask_for->path, params), llama_model_free);
        if (!model) {
            return fail(1, "the model is refused");
        }
        ggml_backend_buffer_ptr zeros;
        if (!put_zeros(*model, zeros)) {
            return fail(1, "no memory for its largest tensor");
        }
        model->hparams.no_alloc = false;

        llama_context_params cparams = ask_for->context;
        cparams.n_ctx                = N_CTX;
        cparams.n_batch              = 2 * N_PROMPT;
        cparams.n_ubatch             = 2 * N_PROMPT;
        cparams.n_seq_max            = 1;
        cparams.n_threads            = 1;
        cparams.n_threads_batch      = 1;
        cparams.no_perf              = true;
        plong_config config          = exact();
        plong_llama_configure_next(&config);
        std::unique_ptr<llama_context, decltype(&llama_free)> ctx(
            llama_init_from_model(model.get(), cparams), llama_free);
        plong_llama_configure_next(nullptr);
        if (!ctx) {
            return fail(1, "the context is refused");
        }
        if (ask_for->lora && *ask_for->lora) {
            llama_adapter_lora * adapter = llama_adapter_lora_init(model.get(), ask_for->lora);
            float                scale   = 1.0f;
            if (!adapter || llama_set_adapters_lora(ctx.get(), &adapter, 1, &scale) != 0) {
                return fail(1, "the adapter is refused");
            }
        }
        plong_rope rope = exact().rope;
        rope.n_train    = 2;
        rope.freq       = PLONG_FREQ_YARN;
        rope.beta_fast  = 32.0f;
        rope.beta_slow  = 1.0f;
        rope.dynamic    = 1;
        ask(ctx.get(), rope, out->no_scaling, sizeof(out->no_scaling));
        rope         = exact().rope;
        rope.n_train = 2;
        rope.map     = PLONG_MAP_REROPE;
        rope.chunk   = 1;
        rope.logn    = 1; /* as `auto` takes it */
        ask(ctx.get(), rope, out->no_map, sizeof(out->no_map));
        ask(ctx.get(), exact().rope, out->error, sizeof(out->error));
        plong_llama_layers(ctx.get(), out->layers, sizeof(out->layers));
        decode(ctx.get(), model.get());
        ctx.reset();
        for (int32_t i = 0; i < ask_for->n_lengths && i < PLONG_PROBE_LENGTHS; i++) {
            out->memory[i] = memory_bytes(*model, ask_for->context, ask_for->lengths[i]);
        }
    } catch (const std::exception & e) { /* a caller of llama.cpp from C could not catch it */
        return fail(2, e.what());
    }
    return 0;
}
