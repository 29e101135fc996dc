/* cells.cpp - finds cells for new tokens, and the cells in which the tokens of sequences are. */
#include "cells.h"

#include <algorithm>
#include <array>
#include <map>

#include "llama-batch.h"
#include "llama-kv-cells.h"

namespace {

constexpr uint32_t BLOCK = 64; /* cells that a sequence reserves at a time */

/* The sequences of a cell, as indices into the requested sequences. */
class slot_finder {
  public:
    explicit slot_finder(const std::vector<llama_seq_id> & seqs) {
        slot_of.fill(-1);
        for (size_t s = 0; s < seqs.size(); s++) {
            slot_of[seqs[s]] = (int32_t) s;
            wanted.set(seqs[s]);
        }
    }

    /* Neighbours mostly have the same sequences, which are then looked up only once. */
    const std::vector<int32_t> & of(const llama_kv_cells::seq_set_t & cell) {
        if (cell != last) {
            last = cell;
            found.clear();
            const auto here = cell & wanted;
            for (size_t seq = 0, left = here.count(); left > 0; seq++) {
                if (here.test(seq)) {
                    found.push_back(slot_of[seq]);
                    left--;
                }
            }
        }
        return found;
    }

  private:
    std::array<int32_t, LLAMA_MAX_SEQ> slot_of;
    llama_kv_cells::seq_set_t          wanted, last;
    std::vector<int32_t>               found; /* for `last` */
};

/* Cells assigned to the tokens of one ubatch, which the cache does not know about yet. */
class placing {
  public:
    placing(const llama_kv_cells & cells, bool whole, std::vector<uint32_t> & out)
        : cells(cells), whole(whole), out(out) {}

    bool place(llama_seq_id seq, llama_pos pos) {
        int64_t at = -1;
        if (const auto it = last.find(seq); it != last.end()) {
            at = it->second + 1;
        } else if (const auto & held = cells.seq_pos_get(seq); !held.empty()) {
            at = (int64_t) held.rbegin()->second + 1;
        }
        const bool follows = !whole || at % BLOCK == pos % BLOCK; /* a saved state may have its tokens in any order */
        if (at < 0 || !follows || !is_free(at) || (whole && at % BLOCK == 0 && !is_free_block(at))) {
            at = free_block();
            at += whole && at >= 0 ? pos % BLOCK : 0;
        }
        if (at < 0 && !whole) {
            at = free_cell();
        }
        if (at < 0) {
            return false;
        }
        last[seq] = at;
        taken.insert(std::upper_bound(taken.begin(), taken.end(), at), at);
        out.push_back((uint32_t) at);
        return true;
    }

  private:
    bool is_free(int64_t i) const {
        return i < (int64_t) cells.size() && cells.is_empty(i) && !std::binary_search(taken.begin(), taken.end(), i);
    }

    bool is_free_block(int64_t begin) const {
        int64_t i = begin;
        while (i < begin + BLOCK && is_free(i)) {
            i++;
        }
        return i == begin + BLOCK;
    }

    /* The first cell of the first block that is completely empty; blocks before `block` are known not to be. */
    int64_t free_block() {
        for (; (block + 1) * BLOCK <= cells.size(); block++) {
            if (is_free_block((int64_t) block * BLOCK)) {
                return (int64_t) block * BLOCK;
            }
        }
        return -1;
    }

    int64_t free_cell() {
        for (; cell < cells.size(); cell++) {
            if (is_free(cell)) {
                return cell;
            }
        }
        return -1;
    }

    const llama_kv_cells &          cells;
    bool                            whole; /* a sequence begins and goes on with whole blocks */
    std::vector<uint32_t> &         out;
    std::map<llama_seq_id, int64_t> last;
    std::vector<int64_t>            taken; /* ascending */
    uint32_t                        block = 0, cell = 0;
};

} // namespace

std::vector<std::vector<plong_run>> plong_runs(
    const llama_kv_cells & cells, uint32_t n_kv, const std::vector<llama_seq_id> & seqs) {
    std::vector<std::vector<plong_run>> out(seqs.size());
    slot_finder                         slots(seqs);
    for (uint32_t i = 0; i < n_kv; i++) {
        if (cells.is_empty(i)) {
            continue;
        }
        const llama_pos pos = cells.pos_get(i);
        for (const int32_t slot : slots.of(cells.seq_get_all(i))) {
            auto & runs = out[slot];
            if (!runs.empty() && pos == runs.back().pos + runs.back().n &&
                (int32_t) i == runs.back().cell + runs.back().n) {
                runs.back().n++;
            } else {
                runs.push_back({ pos, (int32_t) i, 1 });
            }
        }
    }
    const auto before = [](const plong_run & a, const plong_run & b) { return a.pos < b.pos; };
    for (auto & runs : out) {
        if (!std::is_sorted(runs.begin(), runs.end(), before)) {
            std::sort(runs.begin(), runs.end(), before);
        }
    }
    return out;
}

bool plong_place(const llama_kv_cells & cells, const llama_ubatch & ubatch, bool whole, std::vector<uint32_t> & out) {
    placing places(cells, whole, out);
    for (uint32_t i = 0; i < ubatch.n_tokens; i++) {
        if (!places.place(ubatch.seq_id[i][0], ubatch.pos[i])) {
            out.clear();
            return false;
        }
    }
    return true;
}
