"""How often parts of a grammar are repeated, including nested repetitions."""

from __future__ import annotations

from collections.abc import Mapping

from pyllama_long.gbnf.tree import Node, Ref, Repeat, references

MAX_PRODUCT = 1_000_000  # the largest product of nested counts; llguidance needs seconds for more


def check(rules: Mapping[str, Node], root: str) -> None:
    """Raises ValueError. A rule that is inside itself counts once."""
    products: dict[str, int] = {}
    stack = [(root, iter(set(references(rules[root]))))]
    entered = {root}
    while stack:
        name, used = stack[-1]
        for other in used:
            if other not in entered:
                entered.add(other)
                stack.append((other, iter(set(references(rules[other])))))
                break
        else:
            stack.pop()
            products[name] = found = _product(rules[name], products)
            if found > MAX_PRODUCT:
                raise ValueError(
                    f"the grammar cannot be read: repetitions in {name} multiply to more than {MAX_PRODUCT}"
                )


def _product(node: Node, products: Mapping[str, int]) -> int:
    if isinstance(node, Ref):
        return products.get(node.name, 1)
    inner = max((_product(part, products) for part in node.parts), default=1)
    return inner * max(node.low, node.high or 0, 1) if isinstance(node, Repeat) else inner
