"""Turns sampled tokens into text while they arrive: whole characters only, and nothing that a stop string may still
remove."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyllama_long.model import Model

_WINDOW = 32  # tokens before a new one that are passed to another library's tokenizer


class Text:
    """Collects the bytes of an answer, token by token; each push costs the same, however long the answer is."""

    def __init__(self, piece: Callable[[list[int], int], bytes], stop: Sequence[bytes]) -> None:
        self._piece, self._stop = piece, [s for s in stop if s]
        self._reach = max((len(s) for s in self._stop), default=0)
        self.tokens: list[int] = []
        self.ends: list[int] = []  # byte at which each token's text ends
        self.data = bytearray()
        self.sent = 0  # tokens whose text has been taken
        self.end: int | None = None  # where a stop string begins

    def push(self, token: int) -> bool:
        """Adds a token; True when a stop string is complete, which ends the text before it."""
        searched = max(0, len(self.data) - self._reach + 1)
        self.tokens.append(token)
        self.data += self._piece(self.tokens, len(self.tokens) - 1)
        self.ends.append(len(self.data))
        found = [i for i in (self.data.find(s, searched) for s in self._stop) if i >= 0]
        if found:
            self.end = min(found)
        return bool(found)

    def take(self, last: bool = False) -> list[tuple[int, int, str]]:
        """The next pieces (first token, token after the last, text) that are final; last: everything that is left."""
        taken = []
        limit = len(self.data) - (0 if last else self._held_back())
        limit = limit if self.end is None else min(limit, self.end)
        begin, first = self.ends[self.sent - 1] if self.sent else 0, self.sent
        for i in range(first, len(self.tokens)):
            cut = self.ends[i] > limit
            if cut and not (last and begin < limit):
                break
            raw = bytes(self.data[begin : min(self.ends[i], limit)])
            final = last and (cut or i == len(self.tokens) - 1)
            try:
                text = raw.decode()
            except UnicodeDecodeError:
                # Four bytes that do not end in a character will not become one.
                if not final and (len(raw) < 4 or _unfinished(raw)):
                    continue
                text = raw.decode(errors="ignore")
            taken.append((first, i + 1, text))
            begin, first, self.sent = self.ends[i], i + 1, i + 1
        return taken

    def _held_back(self) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        tail = bytes(self.data[-self._reach :]) if self._reach else b""
        lengths = (
            n for s in self._stop for n in range(min(len(s), len(tail)), 0, -1) if tail.endswith(s[:n])
        )
        return max(lengths, default=0)

    def __str__(self) -> str:
        return bytes(self.data[: self.end]).decode(errors="ignore")


def _unfinished(raw: bytes) -> bool:
    """Whether bytes end inside a UTF-8 character."""
    for n in range(1, min(3, len(raw)) + 1):
        byte = raw[-n]
        if byte >= 0xC0:
            return n < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
        if byte < 0x80:
            return False
    return False


def foreign_pieces(
    detokenize: Callable[..., bytes], prompt: Sequence[int]
) -> Callable[[list[int], int], bytes]:
    """Returns a function (tokens, i) -> the bytes that token i adds after the tokens before it, which follow the
    prompt, with the tokenizer of another library."""
    before = list(prompt[-_WINDOW:])

    def read(tokens: list[int], i: int) -> bytes:
        context = (before + tokens[:i] if i < _WINDOW else tokens[i - _WINDOW : i])[-_WINDOW:]
        return detokenize([tokens[i]], prev_tokens=context)

    return read


def model_pieces(model: Model, first: bool, special: bool = False) -> Callable[[list[int], int], bytes]:
    """The same for the model's own tokenizer. first: the answer is the first text after BOS, where tokenizers add a
    space that nobody wrote. special: control tokens have a text too."""

    def read(tokens: list[int], i: int) -> bytes:
        raw = model.piece(tokens[i], special)
        return raw.removeprefix(b" ") if i == 0 and first else raw

    return read
