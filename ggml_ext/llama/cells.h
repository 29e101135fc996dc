/* cells.h - the cells of a K/V cache that sequences share (cells.cpp). C++, internal to libllama. */
#pragma once

#include <cstdint>
#include <vector>

#include "ggml_ext.h"
#include "llama.h"

class llama_kv_cells;
struct llama_ubatch;

/* For each of the sequences, its cells among the first n_kv, as runs in ascending position. O(n_kv). */
std::vector<std::vector<plong_run>> plong_runs(
    const llama_kv_cells & cells, uint32_t n_kv, const std::vector<llama_seq_id> & seqs);

/* Chooses cells for a ubatch's tokens: after the sequence's last one, or in an empty block, so that sequences which
 * write at the same time keep long runs; else wherever a cell is free, or nowhere if whole blocks are wanted. False when
 * there are too few. O(cells). */
bool plong_place(const llama_kv_cells & cells, const llama_ubatch & ubatch, bool whole, std::vector<uint32_t> & out);
