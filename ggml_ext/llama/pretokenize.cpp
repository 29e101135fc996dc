/* pretokenize.cpp - a backtracking matcher that remembers what has failed, so that its time is linear in the text.
 *
 * An expression is compiled to a program; a SPLIT tries one way and pushes the other on a stack. Whether the program
 * can continue from an instruction at a position depends neither on the way there nor on the start of the match (there
 * are no back references, and counted loops are unrolled). So a SPLIT that was tried at a position has failed for good,
 * unless it is on the way to a match. */
#include "pretokenize.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "regex_program.h"

namespace {

using namespace plong_regex;

/* One part of a text, in which matches are looked for from left to right. */
class searcher {
  public:
    searcher(const program & p) : p(p), words((p.n_splits + 31) / 32) {}

    void start(const unit * part, size_t n_units) {
        text = part;
        n    = n_units;
        seen.assign((n + 1) * words, 0);
        aheads.clear();
    }

    /* The first match that starts at `from` or after it. */
    bool search(size_t from, size_t & first, size_t & end) {
        for (first = from; first <= n; first++) {
            if (match(first, false, end)) {
                return true;
            }
        }
        return false;
    }

    /* The match that starts here. not_empty: one without characters does not count. */
    bool match(size_t first, bool not_empty, size_t & end) {
        stack.clear();
        push(0, first);
        while (!stack.empty()) {
            auto &   top = stack.back();
            uint32_t pc  = top.pc;
            size_t   pos = top.hi;
            if (top.lo == top.hi) {
                stack.pop_back();
            } else {
                top.hi--;
            }
            if (run(pc, pos, first, not_empty)) {
                /* Places on the way to this match have not failed; they are before or at this position. */
                std::fill_n(seen.begin() + (ptrdiff_t) (pos * words), words, 0);
                end = pos;
                return true;
            }
        }
        return false;
    }

  private:
    /* Alternatives that are left: this instruction at each of these positions, the highest first. */
    struct ways {
        uint32_t pc;
        size_t   lo, hi;
    };

    void push(uint32_t pc, size_t pos) {
        if (!stack.empty() && stack.back().pc == pc && stack.back().hi + 1 == pos) {
            stack.back().hi = pos;
        } else {
            stack.push_back({ pc, pos, pos });
        }
    }

    /* Runs until the program matches (true, pos is the end) or fails. */
    bool run(uint32_t pc, size_t & pos, size_t first, bool not_empty) {
        for (;;) {
            const instruction & i = p.code[pc];
            switch (i.code) {
                case op::SET:
                    if (pos == n || !p.sets[i.x].has(text[pos])) {
                        return false;
                    }
                    pos++;
                    pc++;
                    break;
                case op::SPLIT: {
                    uint32_t &     word = seen[pos * words + i.slot / 32];
                    const uint32_t bit  = 1u << (i.slot % 32);
                    if (word & bit) {
                        return false;
                    }
                    word |= bit;
                    push(i.y, pos);
                    pc = i.x;
                } break;
                case op::JUMP: pc = i.x; break;
                case op::AHEAD:
                    if (is_ahead(pc, pos) == (i.x != 0)) {
                        return false;
                    }
                    pc = i.y;
                    break;
                case op::END:
                    if (pos != n) {
                        return false;
                    }
                    pc++;
                    break;
                case op::MATCH: return !(not_empty && pos == first);
            }
        }
    }

    bool is_ahead(uint32_t pc, size_t pos) {
        const uint32_t body = pc + 1;
        if (p.code[body].code == op::SET && p.code[body + 1].code == op::MATCH) {
            return pos < n && p.sets[p.code[body].x].has(text[pos]);
        }
        auto & known = aheads[pc];
        if (known.empty()) {
            known = look(body, p.code[pc].y);
        }
        return known[pos];
    }

    /* Whether the following text matches, for all positions at once, from the last one to the first. */
    std::vector<bool> look(uint32_t body, uint32_t end) {
        std::vector<bool>   holds(n + 1);
        std::vector<int8_t> here(end - body), next(end - body, 0);
        for (size_t pos = n + 1; pos-- > 0;) {
            std::fill(here.begin(), here.end(), (int8_t) -1);
            for (uint32_t pc = end; pc-- > body;) {
                reach(pc, pos, body, here, next);
            }
            holds[pos] = here[0] == 1;
            std::swap(here, next);
        }
        return holds;
    }

    bool reach(uint32_t pc, size_t pos, uint32_t body, std::vector<int8_t> & here, const std::vector<int8_t> & next) {
        int8_t & known = here[pc - body];
        if (known >= 0) {
            return known == 1;
        }
        known                 = 0; /* a loop back to this place consumes no character and is useless */
        const instruction & i = p.code[pc];
        bool                y = false;
        switch (i.code) {
            case op::SET: y = pos < n && p.sets[i.x].has(text[pos]) && next[pc + 1 - body] == 1; break;
            case op::SPLIT: y = reach(i.x, pos, body, here, next) || reach(i.y, pos, body, here, next); break;
            case op::JUMP: y = reach(i.x, pos, body, here, next); break;
            case op::AHEAD: y = is_ahead(pc, pos) != (i.x != 0) && reach(i.y, pos, body, here, next); break;
            case op::END: y = pos == n && reach(pc + 1, pos, body, here, next); break;
            case op::MATCH: y = true; break;
        }
        here[pc - body] = y;
        return y;
    }

    const program &       p;
    const size_t          words; /* of `seen` for each position */
    const unit *          text = nullptr;
    size_t                n    = 0;
    std::vector<uint32_t> seen; /* a bit for each SPLIT at each position */
    std::vector<ways>     stack;

    std::map<uint32_t, std::vector<bool>> aheads; /* results of the AHEADs that are longer than one character */
};

std::shared_ptr<const program> program_of(const std::vector<unit> & expression) {
    static std::mutex                                                  lock;
    static std::map<std::vector<unit>, std::shared_ptr<const program>> known;
    const std::lock_guard<std::mutex>                                  guard(lock);
    auto &                                                             found = known[expression];
    if (!found) {
        found = std::make_shared<const program>(compile(expression));
    }
    return found;
}

/* As std::regex_iterator does it: after an empty match, a non-empty one is tried at the same place before the search
 * continues after it. */
std::vector<size_t> split(
    const std::vector<unit> & text, const std::vector<unit> & expression, const std::vector<size_t> & offsets) {
    const auto          p = program_of(expression);
    searcher            s(*p);
    std::vector<size_t> lengths;
    lengths.reserve(offsets.size());
    size_t begin = 0;
    for (const size_t n : offsets) {
        s.start(text.data() + begin, n);
        size_t done = 0, first = 0, end = 0;
        bool   found = s.search(0, first, end);
        while (found) {
            if (first > done) {
                lengths.push_back(first - done);
            }
            lengths.push_back(end - first);
            done = end;
            if (first < end) {
                found = s.search(end, first, end);
            } else if (first == n) {
                found = false;
            } else if (!s.match(first, true, end)) {
                found = s.search(first + 1, first, end);
            }
        }
        if (done < n) {
            lengths.push_back(n - done);
        }
        begin += n;
    }
    return lengths;
}

} // namespace

std::vector<size_t> plong_regex_split(
    const std::string & text, const std::string & regex, const std::vector<size_t> & offsets) {
    const auto units = [](const std::string & s) {
        std::vector<unit> out(s.size());
        std::transform(s.begin(), s.end(), out.begin(), [](char c) { return (unit) (unsigned char) c; });
        return out;
    };
    return split(units(text), units(regex), offsets);
}

std::vector<size_t> plong_regex_split(
    const std::wstring & text, const std::wstring & regex, const std::vector<size_t> & offsets) {
    const auto units = [](const std::wstring & s) { return std::vector<unit>(s.begin(), s.end()); };
    return split(units(text), units(regex), offsets);
}
