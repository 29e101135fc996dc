/* index.h - the indexes of keys of a context. C++, internal to libllama. */
#pragma once

#include <vector>

#include "input.h"
#include "plong_hooks.h"

/* The index of the keys in K, which is created when it is not there. n_cells, n_stream: of the whole cache. */
const plong_index & plong_index_of(plong_state & state, const ggml_tensor * k, uint32_t n_cells, uint32_t n_stream);

/* The pages from which groups of a ubatch may choose and that are not indexed. stream: the one that the ubatch's are
 * counted from. */
std::vector<plong_page> plong_missing_pages(
    const plong_state & state, const plong_plan & plan, const plong_batch_parts & parts, uint32_t stream);

/* By streams of the cache */
bool plong_is_indexed(const plong_state & state, plong_page page);
void plong_set_indexed(plong_state & state, plong_page page);
