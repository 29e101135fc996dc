"""What the server reads from a model's vocabulary: names of control tokens, and those for filling in the middle."""

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


_STRIPS = llama_cpp.LLAMA_TOKEN_ATTR_LSTRIP | llama_cpp.LLAMA_TOKEN_ATTR_RSTRIP
_KEEPS = (llama_cpp.LLAMA_VOCAB_TYPE_SPM, llama_cpp.LLAMA_VOCAB_TYPE_BPE)  # every byte of a text


@dataclass(frozen=True)
class Least:
    """The fewest tokens that a text can become. longest: the most bytes of a text that one token represents; dropped:
    bytes that no token represents by itself, which tokenizers leave out."""

    longest: int
    dropped: bytes

    @staticmethod
    def of(engine: Engine) -> Least | None:
        """None if there is no such number, because the tokenizer also drops or changes other parts of texts."""
        model = engine.model
        if llama_cpp.llama_vocab_type(model.vocab) not in _KEEPS:
            return None
        longest, alone = 1, set[int]()
        for i in range(engine.n_vocab):
            attributes = llama_cpp.llama_vocab_get_attr(model.vocab, i)
            if attributes & _STRIPS:
                return None  # it absorbs the white space next to it, however much there is
            text: bytes = llama_cpp.llama_vocab_get_text(model.vocab, i) or b""
            # A token's text has at least as many bytes as it represents, so most pieces need no check.
            if len(text) > longest or len(text) <= 2 or attributes & llama_cpp.LLAMA_TOKEN_ATTR_BYTE:
                piece = model.piece(i, True)
                longest = max(longest, min(len(text), len(piece) or len(text)))
                if len(piece) == 1:
                    alone.add(piece[0])
        return Least(longest, bytes(sorted(set(range(256)) - alone)))

    def tokens(self, text: str) -> int:
        return len(text.encode().translate(None, self.dropped)) // self.longest


def controls(engine: Engine) -> dict[str, int]:
    """Control tokens by name. The names only become tokens where control tokens are allowed."""
    return {text: i for i, _, text in _controls(engine)}


def boundaries(engine: Engine) -> dict[int, str]:
    """Control tokens by id, without those that change how the following text is tokenized."""
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
