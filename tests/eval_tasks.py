"""Tasks of evals on the prose of the demo."""

from __future__ import annotations

from pyllama_long.evals.documents import Document, Needles
from pyllama_long.evals.haystack import Haystack
from pyllama_long.evals.phrasings import PAIRS, PHRASINGS
from pyllama_long.evals.prompt import Prompt

HAYSTACK = Haystack.of_filler()
FORMS = {phrasing.name: phrasing for phrasing in PHRASINGS}


def task(pairs: int | None = None, depths: int = 5, samples: int = 3, seed: int = 0) -> Needles:
    return Needles(HAYSTACK, PHRASINGS if pairs is None else PAIRS, depths, samples, pairs, seed)


def documents(needles: Needles, prompt: Prompt, length: int) -> list[Document]:
    return [needles.build(prompt, length, outline) for outline in needles.outlines(prompt, length)]
