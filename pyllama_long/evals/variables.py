"""RULER's variable tracking (arXiv 2404.06654): which variables have a value, through a chain of assignments."""

from __future__ import annotations

import itertools
import random
import string
from dataclasses import dataclass

from pyllama_long.evals import fitting
from pyllama_long.evals.prompt import Prompt
from pyllama_long.evals.question import Exam, Question
from pyllama_long.evals.ruler import NOISE, Seeded

__all__ = ["Variables"]

_HOPS = 4
_LETTERS = 5
_ASK = "Find all variables that are assigned the value {value} in the text above."
_LEAD = (
    "According to the chain(s) of variable assignment in the text above, {n} variables are assigned the value "
    "{value}, they are: "
)


@dataclass(frozen=True)
class Variables(Seeded):
    """vt: a chain of `hops` assignments for each question, in noise. A small example precedes it."""

    hops: int = _HOPS

    def made(self, prompt: Prompt, length: int, i: int) -> Exam:
        chance = self.chance(i)
        names = _names(chance, (self.questions + 1) * (self.hops + 1))
        values = [str(value) for value in chance.sample(range(10_000, 100_000), self.questions + 1)]
        chains = [names[k : k + self.hops + 1] for k in range(0, len(names), self.hops + 1)]
        task = "Memorize and track the chain(s) of variable assignment hidden in the following text."
        shown, value = chains.pop(), values.pop()
        example = " ".join(_said(shown, value))
        ask, lead = _ASK.format(value=value), _LEAD.format(n=len(shown), value=value)
        opening = f"{task}\n\n{example}\nQuestion: {ask} Answer: {lead}{', '.join(shown)}\n\n{task}\n"
        hidden: list[fitting.Hidden] = []
        questions = []
        for chain, value in zip(chains, values, strict=True):
            depths = sorted(chance.random() for _ in chain)
            hidden += [(at, f" {text}") for at, text in zip(depths, _said(chain, value), strict=True)]
            lead = _LEAD.format(n=len(chain), value=value)
            questions.append(
                Question(f"Question: {_ASK.format(value=value)}", tuple(chain), f"Answer: {lead}")
            )
        return fitting.hidden_exam(prompt, length, opening, hidden, itertools.repeat(f" {NOISE}"), questions)


def _said(chain: list[str], value: str) -> list[str]:
    """The assignments, in order."""
    first = f"VAR {chain[0]} = {value}."
    return [first, *(f"VAR {after} = VAR {before}." for before, after in itertools.pairwise(chain))]


def _names(chance: random.Random, n: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < n:
        found["".join(chance.choices(string.ascii_uppercase, k=_LETTERS))] = None
    return list(found)
