/* pretokenize.cpp - splits generated texts with every pre-tokenizer's expressions, by std::regex and by ours.
 *
 *     pretokenize SEED TEXTS    prints how many splits were compared; ends with 1 at the first that differs
 *
 * Built together with upstream's unicode.cpp, whose calls of ours are turned into calls of both; patterns.h holds the
 * lists of expressions as llama-vocab.cpp has them, and test_pretokenize.py writes it. */
#include "pretokenize.h"

#include <cstdio>
#include <cstdlib>
#include <random>
#include <regex>

template <typename CharT>
static std::vector<size_t> unicode_regex_split_stl(
    const std::basic_string<CharT> & text, const std::basic_string<CharT> & regex, const std::vector<size_t> & offsets);

static size_t n_splits;

template <typename CharT>
static std::vector<size_t> split_twice(
    const std::basic_string<CharT> & text, const std::basic_string<CharT> & regex,
    const std::vector<size_t> & offsets) {
    const auto ours = plong_regex_split(text, regex, offsets);
    if (ours != unicode_regex_split_stl(text, regex, offsets)) {
        printf("split %zu differs\n", n_splits);
        for (const auto c : text) {
            printf("%x ", (unsigned) c);
        }
        exit(1);
    }
    n_splits += ours.size();
    return ours;
}

#define plong_regex_split split_twice
#include "unicode.cpp"
#undef plong_regex_split

static const std::vector<std::vector<std::string>> patterns = {
#include "patterns.h"
};

static const char * const parts[] = {
    "a",         "Z",      "é",       "ß",         "Ж",          "语",
    "ー",        "あ",     "한",      "ا",         "٣",          "7",
    "09",        "123",    "1234567", " ",         "  ",         "\t",
    "\n",        "\r",     "\r\n",    "\v",        "\u00a0",     "\u2003",
    ".",         ",",      "!",       "?",         "'",          "'s",
    "'LL",       "'re",    "\"",      "-",         "_",          "/",
    "\\",        "(",      ")",       "[",         "]",          "{",
    "}",         "<",      ">",       "=",         "+",          "*",
    "&",         "^",      "%",       "$",         "#",          "@",
    "~",         "`",      "|",       ";",         ":",          "…",
    "。",        "、",     "！",      "～",        "€",          "∑",
    "\u0301",    "\u0e33", "\u200d",  "🦙",        "ŉ",          "ǅ",
    "\ufffd",    "\u0600", " the",    "camelCase", "HTTPServer", "<sentinel:12>",
    "IMGIMGABZ", "    ",   "\u2581",  "e\u0301",   "۔",          "،",
};

int main(int argc, char ** argv) {
    if (argc != 3) {
        return 2;
    }
    std::mt19937 rng((unsigned) atoi(argv[1]));
    const auto   below = [&](size_t n) { return rng() % n; };
    for (int i = 0; i < atoi(argv[2]); i++) {
        const char * few[6];
        for (auto & part : few) {
            part = parts[below(std::size(parts))];
        }
        std::string  text;
        const size_t n = 1 + below(30);
        for (size_t k = 0; k < n; k++) {
            const char * part  = few[below(1 + below(6))];
            const size_t times = std::vector<size_t> { 1, 1, 1, 2, 3, 9, 40, 600 }[below(8)];
            for (size_t t = 0; t < times && text.size() < 4000; t++) {
                text += part;
            }
        }
        for (const auto & list : patterns) {
            unicode_regex_split(text, list);
        }
    }
    printf("%zu\n", n_splits);
    return 0;
}
