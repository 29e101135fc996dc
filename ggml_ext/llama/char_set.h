/* char_set.h - sets of characters of an expression: classes, brackets and their negations. C++, internal to libllama. */
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

namespace plong_regex {

using unit  = uint32_t; /* a byte of a char text, or a code point */
using range = std::pair<unit, unit>;

constexpr unit LAST = UINT32_MAX;

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
inline bool class_of(unit name, char_set & set) {
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

} // namespace plong_regex
