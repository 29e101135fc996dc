/* regex_compile.cpp - compiles an ECMAScript expression, within what pre-tokenizers use, to a program. */
#include <stdexcept>
#include <string>

#include "regex_program.h"

namespace plong_regex {

namespace {

constexpr int MANY       = -1;   /* a loop without a bound */
constexpr int MAX_COPIES = 1000; /* of the body of a counted loop, which is unrolled */

/* Compiles an expression. A part of the expression is read once, and again for each copy. */
class compiler {
  public:
    explicit compiler(const std::vector<unit> & expression) : text(expression) {}

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
            if (n > MAX_COPIES) {
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

    const std::vector<unit> & text;
    size_t                    at = 0;
    program                   out;
};

} // namespace

program compile(const std::vector<unit> & expression) { return compiler(expression).compile(); }

} // namespace plong_regex
