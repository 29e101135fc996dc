"""The tasks of `eval` by name, with the values of their options. RULER's tasks have the names that they have there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pyllama_long.evals.agreement import Agreement
from pyllama_long.evals.documents import Needles as PhrasedNeedles
from pyllama_long.evals.frequencies import CommonWords, FrequentWords
from pyllama_long.evals.haystack import Haystack
from pyllama_long.evals.measure import Task
from pyllama_long.evals.perplexity import Perplexity
from pyllama_long.evals.phrasings import PAIRS
from pyllama_long.evals.retrieval import Exams, Retrieval
from pyllama_long.evals.ruler import Magic, Needles, Passkey
from pyllama_long.evals.variables import Variables

__all__ = ["ALIASES", "MAGIC", "OPTIONS", "PREDICTION", "RULER", "asked", "make", "named"]

MAGIC = {
    "niah_single_1": Magic("noise"),
    "niah_single_2": Magic(),
    "niah_single_3": Magic(kind="uuid"),
    "niah_multikey_1": Magic(keys=4),
    "niah_multikey_2": Magic("needles"),
    "niah_multikey_3": Magic("needles", "uuid", uuid_keys=True),
    "niah_multivalue": Magic(values=4),
    "niah_multiquery": Magic(queries=4),
}
_OTHERS: dict[str, Callable[..., Exams]] = {
    "passkey": Passkey,
    "vt": Variables,
    "cwe": CommonWords,
    "fwe": FrequentWords,
}
RULER = (*MAGIC, "vt", "cwe", "fwe")
PREDICTION = ("perplexity", "agreement")
# Questions about a document whose text holds as many answers anyway.
_QUESTIONS = {"niah_multikey_1": 4, "niah_multikey_2": 10, "niah_multikey_3": 10}
ALIASES: dict[str, tuple[str, ...]] = {
    "single": ("niah_single_2",),
    "multikey": ("niah_multikey_1",),
    "multivalue": ("niah_multivalue",),
    "multiquery": ("niah_multiquery",),
    "ruler": RULER,
}
# Each task with its own options and their values.
OPTIONS: dict[str, dict[str, Any]] = {
    "needle": {"depths": 5, "samples": 10, "text": None, "phrasings": "all"},
    "pairs": {"depths": 5, "samples": 10, "text": None, "pairs": 100},
    "passkey": {"samples": 20, "questions": 1},
    **{name: {"samples": 20, "questions": _QUESTIONS.get(name, 1), "text": None} for name in MAGIC},
    "vt": {"samples": 20, "questions": 1},
    "cwe": {"samples": 20, "text": None},
    "fwe": {"samples": 20},
    "perplexity": {"text": None, "windows": 10, "last": 256},
    "agreement": {"text": None, "windows": 10, "last": 64},
}


def named(names: Sequence[str]) -> tuple[str, ...]:
    """Tasks by their names or those of groups, each once."""
    return tuple(dict.fromkeys(task for name in names for task in ALIASES.get(name, (name,))))


def asked(own: dict[str, Any]) -> int:
    """How many samples or windows a task was asked for."""
    return int(own["samples"] if "samples" in own else own["windows"])


def make(name: str, own: dict[str, Any], text: str | None, lengths: Sequence[int], seed: int) -> Task:
    """own: values of all its options; text: the contents of the file that is one of them. Raises EvalError when the
    text cannot be used."""
    if name in PREDICTION:
        kind = Perplexity if name == "perplexity" else Agreement
        return kind(text or "", tuple(lengths), own["windows"], own["last"], seed)
    haystack = Haystack.of_filler() if text is None else Haystack.of_text(text)
    samples, questions = own["samples"], own.get("questions", 1)
    if name in ("needle", "pairs"):
        forms = own.get("phrasings", PAIRS)
        return Retrieval(PhrasedNeedles(haystack, forms, own["depths"], samples, own.get("pairs"), seed))
    if name in MAGIC:
        return Retrieval(Needles(haystack, samples, questions, seed, MAGIC[name]))
    return Retrieval(_OTHERS[name](haystack, samples, questions, seed))
