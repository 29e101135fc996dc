"""What the server asks of a model's vocabulary: names of control tokens, and those that fill in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import llama_cpp

if TYPE_CHECKING:
    from pyllama_long.engine import Engine

_CONTROL = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN


@dataclass(frozen=True)
class FillMarks:
    """Tokens before the text before, the text after, and what fills the middle."""

    before: int
    after: int
    middle: int

    def around(self, before: list[int], after: list[int]) -> list[int]:
        return [self.before, *before, self.after, *after, self.middle]


def controls(engine: Engine) -> dict[str, int]:
    """Control tokens by name. The names become tokens only where control tokens are allowed."""
    return {text: i for i, _, text in _controls(engine)}


def boundaries(engine: Engine) -> dict[int, str]:
    """Control tokens by id, where what follows is tokenized as it stands."""
    strips = llama_cpp.LLAMA_TOKEN_ATTR_RSTRIP
    return {i: text for i, attributes, text in _controls(engine) if not attributes & strips}


def ends(engine: Engine) -> tuple[str, str]:
    """The names of BOS and EOS; empty where the model has none."""
    return engine.token_text(engine.token_bos), engine.token_text(engine.token_eos)


def fill_marks(engine: Engine) -> FillMarks | None:
    marks = engine.model.fill_marks()
    return None if marks is None else FillMarks(*marks)


def _controls(engine: Engine) -> Iterator[tuple[int, int, str]]:
    """Control tokens that have a name: id, attributes, name."""
    vocab = engine.model.vocab
    for i in range(engine.n_vocab):
        attributes = llama_cpp.llama_vocab_get_attr(vocab, i)
        if attributes & _CONTROL and (text := _text(engine, i)):
            yield i, attributes, text


def _text(engine: Engine, token: int) -> str:
    found: bytes | None = llama_cpp.llama_vocab_get_text(engine.model.vocab, token)
    return (found or b"").decode(errors="replace")
