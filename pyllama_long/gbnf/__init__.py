"""GBNF, the grammars of llama.cpp, for llguidance.

reader.py parses them into the parts of tree.py, and counts.py bounds their repetitions. cut.py decides which parts
are lexemes, with the help of round.py (what may follow what) and automaton.py (what is in them). lark.py writes the
result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyllama_long.gbnf import counts
from pyllama_long.gbnf.cut import Cut
from pyllama_long.gbnf.lark import Writer
from pyllama_long.gbnf.reader import read
from pyllama_long.gbnf.tree import references

__all__ = ["to_lark"]

# Otherwise text without an alternative would be matched to its end in one step, however long, and only with its usual
# tokens; llama.cpp accepts any tokens that write it.
_OPTIONS = '%llguidance {"no_forcing": true}\n'


def to_lark(text: str, token_id: Callable[[str], int] | None = None, ends: Sequence[int] = ()) -> str:
    """A grammar of llama.cpp, whose first rule is `root`, in llguidance's dialect of Lark: the same language.

    token_id: returns the id of the one token with a text such as "<think>", or raises ValueError; without it, tokens
    are written as ids. ends: tokens that end a text, which !<...> does not stand for. Raises ValueError, in one line.
    """
    rules = read(text, token_id)
    counts.check(rules, "root")
    used, names = {"root"}, ["root"]
    for name in names:
        for other in references(rules[name]):
            if other not in used:
                used.add(other)
                names.append(other)
    return _OPTIONS + Writer(Cut({name: rules[name] for name in names}), ends).text()
