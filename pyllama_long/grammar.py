"""Grammars of answers: llguidance's matcher on a model's vocabulary, and the tokens that may come next."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from pyllama_long import _native
from pyllama_long._native import llama_cpp
from pyllama_long.errors import GrammarError
from pyllama_long.gbnf import to_lark
from pyllama_long.model import Model

TokenIds: TypeAlias = npt.NDArray[np.int32]

MAX_BYTES = 1 << 20  # characters of a grammar
_SPECIAL = b"\xff"  # llguidance's mark of a token that matches no text
_CONTROL = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN

# With these limits a compilation takes less than a second, and a step less than half of one (100,000 items took 4.5 s
# with 150,000 tokens); grammars that people write need 20 ms. Large expressions are not run over the whole vocabulary
# when they are compiled, since that took seconds for some.
LIMITS = LLParserLimits(
    max_items_in_row=10_000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=25_000,
    max_lexer_states=100_000,
    max_grammar_size=500_000,
    precompute_large_lexemes=False,
    verbose_errors=False,
)


@dataclass(frozen=True)
class Lark:
    """A grammar in llguidance's dialect of Lark, whose first rule is `start`. Control tokens are not text in it: they
    are written <[id]>."""

    text: str


def from_gbnf(model: Model, text: str) -> Lark:
    """A grammar of llama.cpp. Its own sampler is not used: an ambiguous grammar keeps it busy for hours in a call that
    cannot be stopped, and a token that it refuses ends the process. Raises ValueError."""

    def token(written: str) -> int:
        found = model.tokenize(written.encode(), add_bos=False, special=True)
        if len(found) != 1:
            raise ValueError(f"{written!r} is not one token of this model")
        return found[0]

    return Lark(to_lark(text, token, model.end_tokens))


_tokenizers: WeakKeyDictionary[Model, LLTokenizer] = WeakKeyDictionary()
_making = threading.Lock()


def tokenizer(model: Model) -> LLTokenizer:
    """The model's vocabulary in llguidance's form, made once; that takes a second for 150,000 tokens."""
    with model.using(), _making:
        found = _tokenizers.get(model)
        if found is None:
            found = _tokenizers[model] = _tokenizer(model)
        return found


def _tokenizer(model: Model) -> LLTokenizer:
    ends = list(model.end_tokens)
    tokens = [_bytes(model, i, ends) for i in range(model.n_vocab())]
    if not ends:  # one that the model cannot write
        ends = [len(tokens)]
        tokens.append(_SPECIAL + b"<end>")
    made: LLTokenizer = LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]
        tokens=tokens,
        vocab_ptr=model.vocab,
        tokenize_fptr=_native.tokenize_address(),
        eos_token=ends,
        slices=None,
    )
    return made


def _bytes(model: Model, token: int, ends: list[int]) -> bytes:
    """The text that a token writes. Control tokens write none."""
    text = model.piece(token, special=True)
    if token in ends or llama_cpp.llama_vocab_get_attr(model.vocab, token) & _CONTROL:
        return _SPECIAL + (text or b"<%d>" % token)
    return text


def compile_lark(vocabulary: LLTokenizer, lark: Lark) -> LLMatcher:
    """Raises ValueError, in one line, for a grammar that cannot be read or is too large. Lets other threads run."""
    if len(lark.text.encode()) > MAX_BYTES:
        raise ValueError(f"the grammar is longer than {MAX_BYTES} bytes")
    matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_lark(lark.text), log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise ValueError(f"the grammar cannot be used: {one_line(matcher.get_error())}")
    return matcher


def one_line(message: str) -> str:
    """A message of llguidance without its excerpts of the grammar."""
    if message.startswith("panic"):  # an assertion in it: all known ones limit the size
        return "it has too many parts"
    lines = message.removesuffix("<non-verbose/>").split("\n")
    detail = next((line.removeprefix("error: ") for line in lines[1:] if line.startswith("error: ")), "")
    return " ".join(f"{lines[0]} {detail}".split())[:240]


class Constraint:
    """A grammar that follows one answer and tells which tokens may come next. Used by one thread at a time.

    Raises ValueError when the grammar cannot be used, or allows nothing."""

    def __init__(self, model: Model, lark: Lark) -> None:
        self._n_vocab = model.n_vocab()
        self._matcher = compile_lark(tokenizer(model), lark)
        self._mask: npt.NDArray[np.uint8] | None = None
        try:
            self.prepare()
            empty = self.only() is None and len(self.allowed()) == 0 and not self._matcher.is_accepting()
        except GrammarError as error:
            raise ValueError(str(error)) from None
        if empty:
            raise ValueError("the grammar allows no text at all")

    def prepare(self) -> None:
        """Finds the tokens that may come next. Lets other threads run. Raises GrammarError."""
        if self._mask is None:
            self._mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            self._check()

    @property
    def ended(self) -> bool:
        """Whether the text is complete and nothing can follow it."""
        return bool(self._matcher.is_stopped())

    def allows(self, token: int) -> bool:
        return bool(self._bits()[token >> 3] >> (token & 7) & 1)

    def only(self) -> int | None:
        """The token that may come next, if there is only one."""
        bits = self._bits()
        at = np.flatnonzero(bits)
        if len(at) != 1:
            return None
        byte = int(bits[at[0]])
        return None if byte & (byte - 1) else int(at[0]) * 8 + byte.bit_length() - 1

    def allowed(self) -> TokenIds:
        """All tokens that may come next."""
        bits = np.unpackbits(self._bits(), count=self._n_vocab, bitorder="little")
        return np.flatnonzero(bits).astype(np.int32)

    def take(self, token: int) -> None:
        """Continues the answer with an allowed token. Raises GrammarError."""
        self._mask = None
        self._matcher.consume_token(token)
        self._check()

    def _bits(self) -> npt.NDArray[np.uint8]:
        self.prepare()
        assert self._mask is not None
        return self._mask

    def _check(self) -> None:
        if self._matcher.is_error():
            why = one_line(self._matcher.get_error())
            if why.startswith("NoExtension"):
                raise GrammarError("the grammar allows nothing here")
            raise GrammarError(f"the grammar grew past what is allowed for one answer: {why}")


def json_error(schema: Any) -> str:
    """Why a JSON schema (as JSON text) cannot become a grammar, naming the keyword; empty if it can."""
    error = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema), None, limits=LIMITS)
    return one_line(error)
