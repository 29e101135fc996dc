"""Reads documents, asks about what is hidden in them, and decides which answers are right."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyllama_long.evals.documents import Document, Needle, Retrieval
from pyllama_long.evals.prompt import ANSWER_TOKENS, Prompt

if TYPE_CHECKING:
    from pyllama_long.llama import LongLlama

__all__ = ["ask", "is_right", "measure", "read"]


def measure(
    task: Retrieval,
    llm: LongLlama,
    length: int,
    watch: Callable[[int, int], None],
    keep: Callable[[dict[str, Any]], None] = lambda answer: None,
) -> list[dict[str, Any]]:
    """For each depth: depth, samples, accuracy, and [right, asked] of each phrasing.

    watch: called with the index of the next document, and how many there are. keep: called with each question, its
    answer, and whether that is right. Raises EvalError.
    """
    prompt = Prompt(llm)
    outlines = task.outlines(prompt, length)
    scores: dict[float, dict[str, list[int]]] = {depth: {} for depth in task.all_depths}
    for i, outline in enumerate(outlines):
        watch(i, len(outlines))
        document = task.build(prompt, length, outline)
        read(llm, document)
        for needle in document.asked:
            score = scores[needle.depth].setdefault(needle.phrasing.name, [0, 0])
            answer = ask(prompt, document, needle)
            right = is_right(answer, needle)
            score[0] += right
            score[1] += 1
            keep(
                {
                    "document": i,
                    "depth": round(needle.depth, 4),
                    "phrasing": needle.phrasing.name,
                    "needle": needle.text,
                    "question": needle.question,
                    "value": needle.value,
                    "answer": answer,
                    "right": bool(right),
                }
            )
    return [_of_depth(depth, score) for depth, score in scores.items()]


def _of_depth(depth: float, score: dict[str, list[int]]) -> dict[str, Any]:
    right, asked = (sum(counts) for counts in zip(*score.values(), strict=True))
    phrasings = dict(sorted(score.items()))
    return {"depth": round(depth, 4), "samples": asked, "accuracy": right / asked, "phrasings": phrasings}


def read(llm: LongLlama, document: Document) -> None:
    """Evaluates the document as a new text."""
    llm.reset()
    llm.eval(document.tokens)


def ask(prompt: Prompt, document: Document, needle: Needle) -> str:
    """The likeliest answer; the cached keys of the document are reused."""
    tail = prompt.tail(needle.question)
    answer: Any = prompt.llm.create_completion(
        [*document.tokens, *tail],
        tail=prompt.text(tail),
        max_tokens=ANSWER_TOKENS,
        temperature=0.0,
        stop=prompt.stop,
    )
    return str(answer["choices"][0]["text"])


def is_right(answer: str, needle: Needle) -> bool:
    """Whether the answer contains the value as in the needle, and no other digits; those in the key do not count."""
    said = re.sub(re.escape(needle.key), " ", answer, flags=re.IGNORECASE)
    value = needle.value
    if value.isdigit():
        return value in said and "".join(c for c in said if c.isdigit()) == value
    return re.search(rf"(?<![\w-]){re.escape(value)}(?![\w-])", said, re.IGNORECASE) is not None
