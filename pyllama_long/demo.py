"""A document of many times the trained length with facts hidden in it, and a model that is asked about them.

The words are those that the embedded model was trained to read: a text in one user turn, sentences that say
`The pass key for <word> is <digits>.`, and after the text the question `What is the pass key for <word>?`.
"""

from __future__ import annotations

import random
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from pyllama_long import filler
from pyllama_long.evals.phrasings import OPENING

if TYPE_CHECKING:
    from pyllama_long.llama import LongLlama

__all__ = ["Answer", "Document", "Fact", "Reading", "build_document", "interview", "most_facts", "shortest"]

_OPENING = f"<|im_start|>user\n{OPENING}"
_ENDING = "<|im_end|>\n<|im_start|>assistant\n"
_DIGITS = 5
_MAX_ANSWER_TOKENS = 32
# Everyday words that the embedded model spells back reliably (it reads `pencil` and says `pencictions`).
_WORDS = (
    "anchor apple arrow basket bottle bucket canvas carpet chapel cherry compass corner crown crystal curtain "
    "dagger desert emerald farmer feather fiddle fisher garden hammer harbour hunter ivory jacket jewel kettle "
    "knight lantern lemon library lion marble market meadow mirror mountain mustard ocean orange orchard pigeon "
    "planet pocket quarry rabbit river rocket saddle sailor salmon shepherd soldier spider tailor temple thunder "
    "turkey valley village vinegar wagon walnut willow winter wizard"
).split()
DEPTHS = (0.0, 0.95)  # depths of the first and the last fact


@dataclass(frozen=True)
class Fact:
    """depth: where the sentence lies, from 0 (the beginning) to 1 (the question)."""

    word: str
    value: str
    depth: float

    @property
    def sentence(self) -> str:
        return f"The pass key for {self.word} is {self.value}."

    @property
    def question(self) -> str:
        return f"What is the pass key for {self.word}?"


@dataclass(frozen=True)
class Document:
    """text: all that comes before a question, chat markers included; n_tokens: its length."""

    text: str
    facts: tuple[Fact, ...]
    n_tokens: int

    def prompt(self, fact: Fact) -> str:
        return self.text + self.tail(fact)

    def tail(self, fact: Fact) -> str:
        """The part of the prompt that belongs to the question."""
        return fact.question + _ENDING


@dataclass(frozen=True)
class Answer:
    """n_tokens were generated in `seconds`, after the first one."""

    fact: Fact
    text: str
    found: bool
    n_tokens: int
    seconds: float


@dataclass(frozen=True)
class Reading:
    """What a model found in a document. Rates are in tokens per second."""

    document: Document
    answers: tuple[Answer, ...]
    prefill_tps: float
    decode_tps: float

    @property
    def found(self) -> int:
        return sum(answer.found for answer in self.answers)


def most_facts() -> int:
    return len(_WORDS)


def _facts(n_facts: int, chance: random.Random) -> tuple[Fact, ...]:
    words = chance.sample(_WORDS, n_facts)
    values = [f"{value:0{_DIGITS}}" for value in chance.sample(range(10**_DIGITS), len(words))]
    low, high = DEPTHS
    depths = [low + (high - low) * k / max(1, n_facts - 1) for k in range(n_facts)]
    return tuple(map(Fact, words, values, depths))


def shortest(count: Callable[[str], int], n_facts: int = 10, seed: int = 0) -> int:
    """The number of tokens of the facts with nothing between them; a document cannot be shorter."""
    return count(_assemble([], _facts(n_facts, random.Random(seed))))


def build_document(count: Callable[[str], int], length: int, n_facts: int = 10, seed: int = 0) -> Document:
    """Makes a document of `length` tokens or a few more, with facts spread evenly over DEPTHS.

    count: the number of tokens of a text, chat markers and the beginning-of-text token included.
    Raises ValueError when the facts do not fit.
    """
    if not 1 <= n_facts <= len(_WORDS):
        raise ValueError(f"{n_facts} facts are not from 1 to {len(_WORDS)}")
    facts = _facts(n_facts, random.Random(seed))
    if count(_assemble([], facts)) > length:
        raise ValueError(
            f"{n_facts} facts do not fit into {length} tokens: ask for fewer, or for a longer document"
        )
    stream = filler.stream(seed)
    sentences: list[str] = []
    text = _assemble(sentences, facts)
    n = count(text)
    while n < length:
        sentences += _about(stream, length - n)
        text = _assemble(sentences, facts)
        n = count(text)
    return Document(text, facts, n)


def _about(stream: Iterator[str], n_tokens: int) -> Iterator[str]:
    """At least one sentence, and no more than are sure to fit, for words of up to three tokens."""
    n_words = 0
    while n_words <= n_tokens // 3:
        sentence = next(stream)
        n_words += len(sentence.split())
        yield sentence


def _assemble(sentences: Sequence[str], facts: Sequence[Fact]) -> str:
    """The opening, and the sentences with each fact before the one at its depth, counted in characters."""
    ends = list(accumulate(len(sentence) + 1 for sentence in sentences))
    total = ends[-1] if ends else 0
    places = [bisect_left(ends, fact.depth * total) for fact in facts]
    body: list[str] = []
    before = 0
    for fact, place in zip(facts, places, strict=True):
        body += sentences[before:place]
        body.append(fact.sentence)
        before = place
    body += sentences[before:]
    return _OPENING + "".join(f" {sentence}" for sentence in body) + "\n"


def read(llm: LongLlama, document: Document) -> float:
    """Evaluates the document as a new text; returns the seconds that it took. llm.progress gets the progress."""
    tokens = llm.tokenize(document.text.encode(), special=True)
    llm.reset()
    started = time.perf_counter()
    llm.eval(tokens)
    return time.perf_counter() - started


def ask(
    llm: LongLlama, document: Document, fact: Fact, on_text: Callable[[str], None] | None = None
) -> Answer:
    """Asks about a fact; the cached keys of the document are reused. on_text gets the pieces of the answer."""
    said = ""
    times = []
    stream: Iterator[Any] = llm.create_completion(
        document.prompt(fact),
        tail=document.tail(fact),
        max_tokens=_MAX_ANSWER_TOKENS,
        temperature=0.0,
        stream=True,
    )
    for chunk in stream:
        piece = chunk["choices"][0]["text"]
        if piece:
            times.append(time.perf_counter())
            said += piece
            if on_text is not None:
                on_text(piece)
    found = "".join(c for c in said if c.isdigit()) == fact.value
    return Answer(fact, said.strip(), found, max(0, len(times) - 1), times[-1] - times[0] if times else 0.0)


def interview(
    llm: LongLlama,
    document: Document,
    on_question: Callable[[Fact], None] | None = None,
    on_text: Callable[[str], None] | None = None,
    on_answer: Callable[[Answer], None] | None = None,
) -> Reading:
    """Reads a document and asks about all of its facts."""
    seconds = read(llm, document)
    answers = []
    for fact in document.facts:
        if on_question is not None:
            on_question(fact)
        answers.append(ask(llm, document, fact, on_text))
        if on_answer is not None:
            on_answer(answers[-1])
    decoding = sum(answer.seconds for answer in answers)
    decoded = sum(answer.n_tokens for answer in answers)
    return Reading(document, tuple(answers), document.n_tokens / seconds, decoded / max(decoding, 1e-9))
