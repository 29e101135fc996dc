"""What the server asks of a model's vocabulary: names of control tokens, and those that fill in the middle."""

from __future__ import annotations

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


def control_texts(engine: Engine) -> list[str]:
    """Names that become tokens only where control tokens are allowed."""
    vocab = engine.model.vocab
    ids = (i for i in range(engine.n_vocab) if llama_cpp.llama_vocab_get_attr(vocab, i) & _CONTROL)
    return [text for text in (_text(engine, i) for i in ids) if text]


def boundaries(engine: Engine) -> dict[int, str]:
    """Control tokens by id, where what follows is tokenized as it stands."""
    vocab, apart = engine.model.vocab, {}
    for i in range(engine.n_vocab):
        attributes = llama_cpp.llama_vocab_get_attr(vocab, i)
        if (
            attributes & _CONTROL
            and not attributes & llama_cpp.LLAMA_TOKEN_ATTR_RSTRIP
            and (text := _text(engine, i))
        ):
            apart[i] = text
    return apart


def ends(engine: Engine) -> tuple[str, str]:
    """The names of BOS and EOS; empty where the model has none."""
    return engine.token_text(engine.token_bos), engine.token_text(engine.token_eos)


def fill_marks(engine: Engine) -> FillMarks | None:
    marks = engine.model.fill_marks()
    return None if marks is None else FillMarks(*marks)


def _text(engine: Engine, token: int) -> str:
    found: bytes | None = llama_cpp.llama_vocab_get_text(engine.model.vocab, token)
    return (found or b"").decode(errors="replace")
