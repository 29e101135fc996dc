/* images.cpp - which batches and caches of models with M-RoPE hold parts of images, whose tokens have several positions. */
#include "llama-batch.h"
#include "plong_hooks.h"
#include "rotate_cells.h"

bool plong_holds_images(const llama_kv_cache & cache) {
    bool found = false;
    plong_each_stream(cache, [&](const llama_kv_cells & cells, uint32_t) {
        const uint32_t end = cells.used_max_p1();
        for (uint32_t i = 0; i < end && !found; i++) {
            const llama_kv_cell_ext & ext = cells.ext_get(i);
            found = !cells.is_empty(i) && (ext.x != cells.pos_get(i) || ext.y != cells.pos_get(i));
        }
    });
    return found;
}

bool plong_has_images(const plong_state * state, const llama_ubatch & ubatch, llama_memory_i * memory) {
    if (!state || !state->enabled() || !ubatch.is_pos_2d() || !ubatch.pos) {
        return false;
    }
    for (uint32_t i = 0; i < ubatch.n_tokens && !ubatch.token; i++) {
        for (uint32_t section = 1; section < 3; section++) {
            if (ubatch.pos[section * ubatch.n_tokens + i] != ubatch.pos[i]) {
                return true;
            }
        }
    }
    const llama_kv_cache * cache = plong_plain_cache(memory);
    return cache && plong_holds_images(*cache);
}
