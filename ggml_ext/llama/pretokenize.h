/* pretokenize.h - the expressions of pre-tokenizers (pretokenize.cpp). C++, internal to libllama. */
#pragma once

#include <cstddef>
#include <string>
#include <vector>

/* Splits text where upstream's unicode_regex_split_stl splits it with std::regex (ECMAScript): offsets are the lengths
 * of parts that are searched one by one; the result is the lengths of their matches and of the texts between. Time is
 * linear in the text, and there is no recursion: std::regex recurses once per character and ends the process at some
 * 26,000. Throws std::runtime_error for an expression that it cannot read. */
std::vector<size_t> plong_regex_split(
    const std::string & text, const std::string & regex, const std::vector<size_t> & offsets);
std::vector<size_t> plong_regex_split(
    const std::wstring & text, const std::wstring & regex, const std::vector<size_t> & offsets);
