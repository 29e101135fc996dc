/* vocab.cpp - errors in place of aborts in upstream's vocabularies, and special tokens found in linear time. */
#include "vocab.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <utility>

#include "llama-impl.h"

constexpr int LONGEST_TOKEN = 4096; /* bytes */

void plong_check(bool holds, const char * text) {
    if (!holds) {
        throw std::runtime_error(text);
    }
}

int32_t plong_failed(const std::exception & error) {
    LLAMA_LOG_ERROR("%s\n", error.what());
    return INT32_MIN;
}

void plong_check_tokens(size_t n, size_t n_texts, int longest) {
    plong_check(n > 0, "the vocabulary has no tokens");
    plong_check(n == n_texts, "the vocabulary has a token twice");
    plong_check(longest <= LONGEST_TOKEN, "the vocabulary has a token of more than 4096 bytes");
}

bool plong_has_token(const llama_vocab * vocab, llama_token token) {
    return llama_vocab_type(vocab) != LLAMA_VOCAB_TYPE_NONE && token >= 0 && token < llama_vocab_n_tokens(vocab);
}

void plong_specials::add(llama_token token, const std::string & text) {
    if (text.empty()) {
        return;
    }
    if (rank.empty()) {
        rank.push_back(NONE);
    }
    uint32_t node = 0;
    for (const char c : text) {
        const auto byte = (unsigned char) c;
        auto &     next = node == 0 ? roots[byte] : children[(uint64_t) node << 8 | byte];
        if (next == 0) {
            next = (uint32_t) rank.size();
            rank.push_back(NONE);
        }
        node = next;
    }
    rank[node] = (uint32_t) tokens.size();
    tokens.push_back({ token, text.size() });
}

uint32_t plong_specials::step(uint32_t node, unsigned char c) const {
    if (node == 0) {
        return roots[c];
    }
    const auto next = children.find((uint64_t) node << 8 | c);
    return next == children.end() ? 0 : next->second;
}

/* The rank of the longest of the wanted tokens with which the text begins; NONE if there is none. */
uint32_t plong_specials::longest(const char * text, size_t n, const std::vector<bool> & wanted) const {
    uint32_t best = NONE;
    uint32_t node = 0;
    for (size_t i = 0; i < n; i++) {
        node = step(node, (unsigned char) text[i]);
        if (node == 0) {
            break;
        }
        if (rank[node] != NONE && wanted[rank[node]]) {
            best = rank[node];
        }
    }
    return best;
}

std::vector<plong_part> plong_specials::split(const std::string & text, bool special, const attributes & attr) const {
    enum : uint8_t { FREE, TAKEN, DROPPED };

    std::vector<bool> wanted(tokens.size());
    for (size_t r = 0; r < tokens.size(); r++) {
        wanted[r] = special || !(attr(tokens[r].id) & (LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN));
    }

    /* Places where a token could be, by its rank: the longest at a place has the lowest rank of those there. */
    std::map<uint32_t, std::vector<size_t>> places;
    const size_t                            n = text.size();
    for (size_t at = 0; at < n && !tokens.empty(); at++) {
        if (roots[(unsigned char) text[at]] == 0) {
            continue;
        }
        const auto here = longest(text.data() + at, n - at, wanted);
        if (here != NONE) {
            places[here].push_back(at);
        }
    }

    std::vector<uint8_t>                        state(places.empty() ? 0 : n, FREE);
    std::vector<std::pair<size_t, llama_token>> taken;

    const auto is_free  = [&](size_t at) { return at < n && state[at] == FREE; };
    const auto is_blank = [&](size_t at) { return text[at] == ' ' || (text[at] >= '\t' && text[at] <= '\r'); };
    while (!places.empty()) {
        const special_token & token = tokens[places.begin()->first];
        std::vector<size_t>   these = std::move(places.begin()->second);
        places.erase(places.begin());
        std::sort(these.begin(), these.end()); /* some were moved here from a longer token's places */
        const auto a = attr(token.id);
        for (const size_t at : these) {
            size_t room = 0;
            while (room < token.length && is_free(at + room)) {
                room++;
            }
            if (room < token.length) {
                const auto here = longest(text.data() + at, room, wanted);
                if (here != NONE) {
                    places[here].push_back(at);
                }
                continue;
            }
            std::fill_n(state.begin() + (ptrdiff_t) at, token.length, TAKEN);
            taken.push_back({ at, token.id });
            for (size_t left = at;
                 (a & LLAMA_TOKEN_ATTR_LSTRIP) && left > 0 && is_free(left - 1) && is_blank(left - 1);) {
                state[--left] = DROPPED;
            }
            for (size_t next = at + token.length; (a & LLAMA_TOKEN_ATTR_RSTRIP) && is_free(next) && is_blank(next);) {
                state[next++] = DROPPED;
            }
        }
    }

    std::vector<plong_part> parts;
    if (taken.empty()) {
        if (n > 0) {
            parts.push_back({ LLAMA_TOKEN_NULL, 0, n });
        }
        return parts;
    }
    std::sort(taken.begin(), taken.end());
    auto token = taken.begin();
    for (size_t at = 0; at < n;) {
        const size_t from = at;
        while (is_free(at)) {
            at++;
        }
        if (at > from) {
            parts.push_back({ LLAMA_TOKEN_NULL, from, at - from });
        }
        for (; token != taken.end() && token->first == at; ++token) {
            parts.push_back({ token->second, at, 0 });
        }
        while (at < n && state[at] != FREE && (token == taken.end() || at < token->first)) {
            at++;
        }
    }
    return parts;
}
