/* regex_program.h - the program to which an expression is compiled (regex_compile.cpp) and which pretokenize.cpp runs.
 * C++, internal to libllama. */
#pragma once

#include "char_set.h"

namespace plong_regex {

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

/* Throws std::runtime_error for an expression that it cannot read. Counted loops are unrolled, and there are no back
 * references. */
program compile(const std::vector<unit> & expression);

} // namespace plong_regex
