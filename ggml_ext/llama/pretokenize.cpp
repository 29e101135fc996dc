/* pretokenize.cpp - a backtracking matcher that remembers what has failed, so that its time is linear in the text.
 *
 * An expression is compiled to a program; a SPLIT tries one way and pushes the other on a stack. Whether the program
 * can continue from an instruction at a position depends neither on the way there nor on the start of the match (there
 * are no back references, and counted loops are unrolled). So a SPLIT that was tried at a position has failed for good,
 * unless it is on the way to a match. */
#include "pretokenize.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>

namespace {

using unit  = uint32_t; /* a byte of a char text, or a code point */
using range = std::pair<unit, unit>;

constexpr unit     LAST  = UINT32_MAX;
constexpr uint32_t NONE  = UINT32_MAX;
constexpr int      MANY  = -1;   /* a loop without a bound */
constexpr int      BOUND = 1000; /* copies of counted loops, which are unrolled */

/* Characters of one place in an expression. */
class char_set {
  public:
    void add(unit first, unit last) { ranges.push_back({ first, last }); }

    void add(const char_set & other) { ranges.insert(ranges.end(), other.ranges.begin(), other.ranges.end()); }

    void negate() {
        sort();
        std::vector<range> others;
        unit               next = 0;
        bool               full = false;
        for (const auto & r : ranges) {
            if (r.first > next) {
                others.push_back({ next, r.first - 1 });
            }
            full = r.second == LAST;
            next = r.second + 1;
        }
        if (!full) {
            others.push_back({ next, LAST });
        }
        ranges = std::move(others);
    }

    void finish() {
        sort();
        for (unit c = 0; c < low.size(); c++) {
            low[c] = find(c);
        }
    }

    bool has(unit c) const { return c < low.size() ? low[c] : find(c); }

  private:
    void sort() {
        std::sort(ranges.begin(), ranges.end());
        std::vector<range> merged;
        for (const auto & r : ranges) {
            if (!merged.empty() && (merged.back().second == LAST || r.first <= merged.back().second + 1)) {
                merged.back().second = std::max(merged.back().second, r.second);
            } else {
                merged.push_back(r);
            }
        }
        ranges = std::move(merged);
    }

    bool find(unit c) const {
        const auto after =
            std::upper_bound(ranges.begin(), ranges.end(), c, [](unit x, const range & r) { return x < r.first; });
        return after != ranges.begin() && c <= std::prev(after)->second;
    }

    std::vector<range>    ranges;
    std::array<bool, 256> low {};
};

/* The class of \s, \d or \w, or of their negations in capitals; characters beyond ASCII are in none of the three. */
bool class_of(unit name, char_set & set) {
    switch (name | 0x20) {
        case 'd': set.add('0', '9'); break;
        case 's':
            set.add('\t', '\r');
            set.add(' ', ' ');
            break;
        case 'w':
            set.add('0', '9');
            set.add('A', 'Z');
            set.add('a', 'z');
            set.add('_', '_');
            break;
        default: return false;
    }
    if (name < 'a') {
        set.negate();
    }
    return true;
}

enum class op : uint8_t {
    SET,   /* takes a character of set x */
    SPLIT, /* continues at x, and if that fails, at y */
    JUMP,  /* goes on at x */
    AHEAD, /* continues at y if the following text matches from the next instruction; with x = 1, if it does not */
    END,   /* continues at the end of the text */
    MATCH,
};

struct instruction {
    op       code;
    uint32_t x, y;
    uint32_t slot; /* of a SPLIT among the SPLITs */
};

struct program {
    std::vector<instruction> code;
    std::vector<char_set>    sets;
    uint32_t                 n_splits = 0;
};

/* Compiles an expression. A part of the expression is read once, and again for each copy. */
class compiler {
  public:
    explicit compiler(std::vector<unit> expression) : text(std::move(expression)) {}

    program compile() {
        alternatives();
        if (at != text.size()) {
            fail();
        }
        emit(op::MATCH);
        return std::move(out);
    }

  private:
    [[noreturn]] void fail() const {
        throw std::runtime_error(
            "the pre-tokenizer's expression has something unknown at character " + std::to_string(at));
    }

    bool more() const { return at < text.size(); }
    bool next_is(char c) const { return more() && text[at] == (unit) c; }
    bool take(char c) { return next_is(c) ? (at++, true) : false; }

    uint32_t emit(op code, uint32_t x = 0, uint32_t y = 0) {
        const uint32_t slot = code == op::SPLIT ? out.n_splits++ : 0;
        out.code.push_back({ code, x, y, slot });
        return here() - 1;
    }

    uint32_t here() const { return (uint32_t) out.code.size(); }

    /* a|b|c: each SPLIT must be written before its alternative, so alternatives are read ahead to find out whether one
     * follows. */
    void alternatives() {
        std::vector<uint32_t> exits;
        for (;;) {
            const size_t   from  = at;
            const program  saved = out;
            const uint32_t split = emit(op::SPLIT);
            sequence();
            if (!take('|')) {
                if (at < from) {
                    fail();
                }
                out = saved; /* the last one needs no SPLIT */
                at  = from;
                sequence();
                break;
            }
            exits.push_back(emit(op::JUMP));
            out.code[split].x = split + 1;
            out.code[split].y = here();
        }
        for (const uint32_t exit : exits) {
            out.code[exit].x = here();
        }
    }

    void sequence() {
        while (more() && !next_is('|') && !next_is(')')) {
            repeated();
        }
    }

    /* An atom and its quantifier, which is greedy. */
    void repeated() {
        const size_t   from  = at;
        const program  saved = out;
        const uint32_t body  = here();
        atom();
        int least = 1, most = 1;
        if (!quantifier(least, most)) {
            return;
        }
        const size_t after = at;
        if (least == 1 && most == MANY) {
            check_takes(body);
            const uint32_t split = emit(op::SPLIT, body);
            out.code[split].y    = here();
            return;
        }
        out = saved;
        for (int i = 0; i < least; i++) {
            copy(from);
        }
        if (most == MANY) {
            const uint32_t split = emit(op::SPLIT);
            out.code[split].x    = here();
            copy(from);
            check_takes(split + 1);
            emit(op::JUMP, split);
            out.code[split].y = here();
        } else {
            std::vector<uint32_t> splits;
            for (int i = least; i < most; i++) {
                splits.push_back(emit(op::SPLIT, here() + 1));
                copy(from);
            }
            for (const uint32_t split : splits) {
                out.code[split].y = here();
            }
        }
        at = after;
    }

    void copy(size_t from) {
        at = from;
        atom();
    }

    /* A loop whose body can be empty would need std::regex's own rules. */
    void check_takes(uint32_t body) const {
        std::vector<bool>     seen(out.code.size() + 1, false);
        std::vector<uint32_t> left { body };
        while (!left.empty()) {
            const uint32_t pc = left.back();
            left.pop_back();
            if (pc >= here()) {
                fail();
            }
            if (seen[pc]) {
                continue;
            }
            seen[pc]       = true;
            const auto & i = out.code[pc];
            switch (i.code) {
                case op::SET: break;
                case op::SPLIT:
                    left.push_back(i.x);
                    left.push_back(i.y);
                    break;
                case op::JUMP: left.push_back(i.x); break;
                case op::AHEAD: left.push_back(i.y); break;
                default: left.push_back(pc + 1);
            }
        }
    }

    bool quantifier(int & least, int & most) {
        if (take('*')) {
            least = 0, most = MANY;
        } else if (take('+')) {
            least = 1, most = MANY;
        } else if (take('?')) {
            least = 0, most = 1;
        } else if (take('{')) {
            least = most = number();
            if (take(',')) {
                most = next_is('}') ? MANY : number();
            }
            if (!take('}') || (most != MANY && most < least)) {
                fail();
            }
        } else {
            return false;
        }
        if (next_is('?') || next_is('*') || next_is('+') || next_is('{')) {
            fail();
        } /* lazy, or two of them */
        return true;
    }

    int number() {
        int n = 0;
        if (!more() || text[at] < '0' || text[at] > '9') {
            fail();
        }
        while (more() && text[at] >= '0' && text[at] <= '9') {
            n = n * 10 + (int) (text[at++] - '0');
            if (n > BOUND) {
                fail();
            }
        }
        return n;
    }

    void atom() {
        if (take('(')) {
            if (take('?')) {
                if (take('=') || take('!')) {
                    const uint32_t ahead = emit(op::AHEAD, text[at - 1] == '!');
                    alternatives();
                    emit(op::MATCH);
                    out.code[ahead].y = here();
                } else if (take(':')) {
                    alternatives();
                } else {
                    fail();
                }
            } else {
                alternatives();
            }
            if (!take(')')) {
                fail();
            }
        } else if (take('$')) {
            emit(op::END);
        } else {
            emit(op::SET, set());
        }
    }

    uint32_t set() {
        char_set found;
        if (take('[')) {
            bracket(found);
        } else if (take('.')) {
            found.add('\n', '\n');
            found.add('\r', '\r');
            found.negate();
        } else if (take('\\')) {
            unit c;
            if (!escape(c, found)) {
                found.add(c, c);
            }
        } else {
            for (const char c : { '^', '*', '+', '?', '{', '}', ']' }) {
                if (next_is(c)) {
                    fail();
                }
            }
            found.add(text[at], text[at]);
            at++;
        }
        found.finish();
        out.sets.push_back(std::move(found));
        return (uint32_t) out.sets.size() - 1;
    }

    /* What follows a backslash: a class, which is added to the set (true), or one character. */
    bool escape(unit & c, char_set & found) {
        if (!more()) {
            fail();
        }
        c = text[at];
        char_set named;
        if (class_of(c, named)) {
            at++;
            found.add(named);
            return true;
        }
        switch (c) {
            case 'n': c = '\n'; break;
            case 'r': c = '\r'; break;
            case 't': c = '\t'; break;
            case 'f': c = '\f'; break;
            case 'v': c = '\v'; break;
            default:
                if (c < 128 && ((c | 0x20) - 'a' < 26 || c - '0' < 10)) {
                    fail();
                }
        }
        at++;
        return false;
    }

    /* Reads the inside of [ ], up to the closing bracket. A dash without a character before it stands for itself. */
    void bracket(char_set & found) {
        const bool negated = take('^');
        while (!take(']')) {
            unit first;
            if (!member(first, found)) {
                continue;
            }
            if (next_is('-') && at + 1 < text.size() && text[at + 1] != ']') {
                at++;
                unit last;
                if (!member(last, found) || last < first) {
                    fail();
                }
                found.add(first, last);
            } else {
                found.add(first, first);
            }
        }
        if (negated) {
            found.negate();
        }
    }

    bool member(unit & c, char_set & found) {
        if (take('\\')) {
            return !escape(c, found);
        }
        if (!more()) {
            fail();
        }
        c = text[at++];
        if (c == '[' && (next_is(':') || next_is('.') || next_is('='))) {
            fail();
        }
        return true;
    }

    std::vector<unit> text;
    size_t            at = 0;
    program           out;
};

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
        found = std::make_shared<const program>(compiler(expression).compile());
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
