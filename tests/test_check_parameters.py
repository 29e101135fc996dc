"""scripts/check_parameters.py counts what a reader would count."""

from __future__ import annotations

import check_parameters

C = """
/* int comment(int a, int b); */
#define MACRO(a, b, c) \\
    call(a, b, c)
static inline int two(const char * s, int (*w)[8]) {
    log("%d, %d", 1, 2);
    return two(s, w);
}
struct part none(void);
void maps(std::map<int, int> m, int n) noexcept {
    if (none()) { throw error(1, 2, 3); }
    other(1, 2, 3);
}
"""


def test_counts_parameters_of_definitions_and_declarations() -> None:
    assert list(check_parameters.functions(C)) == [(5, "two", 2), (9, "none", 0), (10, "maps", 2)]
