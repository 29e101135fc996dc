/* vocab.h - makes upstream's vocabularies and tokenizers safe (vocab.cpp). C++, internal to libllama. */
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "llama.h"

/* Throws std::runtime_error with this text unless the condition holds. Replaces asserts that a file or a text can
 * reach. */
void plong_check(bool holds, const char * text);

/* What llama_tokenize and its kin return when they cannot continue; the reason is logged, since no exception may leave
 * C. */
int32_t plong_failed(const std::exception & error);

/* Throws if there are no tokens, if one is longer than 4096 bytes (matchers recurse by a token's bytes), or if two are
 * the same. n_texts: how many different texts the n tokens have. */
void plong_check_tokens(size_t n, size_t n_texts, int longest);

/* Whether token is one of the vocabulary; there are none in a vocabulary of type "none". */
bool plong_has_token(const llama_vocab * vocab, llama_token token);

/* A part of a text: a special token, or LLAMA_TOKEN_NULL and a run of text. */
struct plong_part {
    llama_token token;
    size_t      offset, length; /* bytes */
};

/* Finds special tokens in a text as upstream's tokenizer_st_partition does: earlier tokens take their places first,
 * each from left to right. Time is linear in the text; upstream's is the product of tokens and parts. */
class plong_specials {
  public:
    using attributes = std::function<llama_token_attr(llama_token)>;

    /* Adds a token after all others; no earlier one may be shorter. */
    void add(llama_token token, const std::string & text);

    /* special: also find control and unknown tokens. Time: text x the longest special token. */
    std::vector<plong_part> split(const std::string & text, bool special, const attributes & attr) const;

  private:
    static constexpr uint32_t NONE = UINT32_MAX;

    struct special_token {
        llama_token id;
        size_t      length; /* bytes */
    };

    uint32_t step(uint32_t node, unsigned char c) const;
    uint32_t longest(const char * text, size_t n, const std::vector<bool> & wanted) const;

    std::vector<special_token>             tokens; /* by rank */
    std::vector<uint32_t>                  rank;   /* of the token that ends at a node, or NONE */
    std::unordered_map<uint64_t, uint32_t> children;
    std::array<uint32_t, 256>              roots {}; /* node of a first byte, 0 for none */
};
