"""Reads literals as they stream in: Python's, JSON's and Gemma's."""

from __future__ import annotations

import re
from typing import Any

from pyllama_long.json_values import json_text, loads

from .incoming import Cut, Input, NotACall, Waiting

_DEPTH = 64
_BARE = re.compile(r"[^\s,:()\[\]{}\"'<]{0,1024}")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2})|(\n)|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "a": "\a", "v": "\v"}
_CLOSES = {"[": "]", "(": ")", "{": "}"}
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_BEHIND = (",", ":", ")", "]", "}")  # what may follow a text: quotes inside it then need no escape


def plain(text: str) -> Any:
    """JSON, or the text itself."""
    try:
        return loads(text)
    except ValueError:
        return text


def parsed(text: str) -> Any:
    """A list or an object, which may be written as in Python, or the text itself."""
    found = plain(text)
    if isinstance(found, str) and text.lstrip()[:1] in _CLOSES:
        source = Input(text, ended=True)
        try:
            next(value(source, ("'", '"'), 0))
        except StopIteration as ended:
            return ended.value[0] if not source.text.strip() else text
        except (Cut, NotACall):
            pass
    return found


def value(source: Input, quotes: tuple[str, ...], depth: int) -> Waiting:
    """Reads (value, its text if it is a text or a word). Raises Cut with JSON that ends where the answer does."""
    if depth > _DEPTH:
        raise NotACall
    yield from source.space()
    begin = yield from source.follows(*quotes, *_CLOSES)
    if begin in quotes and begin:
        text = yield from quoted(source, begin, quotes)
        return text, text
    if begin:
        source.skip(1)
        return (yield from _items(source, begin, quotes, depth)), None
    word = yield from _word(source)
    if source.ended and not source.text:
        raise Cut("" if word in _WORDS or not word else json_text(plain(word)))
    if not word:
        raise NotACall
    return (_WORDS[word] if word in _WORDS else plain(word)), word


def _items(source: Input, begin: str, quotes: tuple[str, ...], depth: int) -> Waiting:
    found: list[Any] = []
    pairs: dict[str, Any] = {}
    close, done = _CLOSES[begin], 0

    def cut(more: str = "") -> Cut:
        text = json_text(pairs if begin == "{" else found)[:-1]
        return Cut(text + (", " if done and more else "") + more)

    while True:
        yield from source.space()
        if (yield from source.follows(close)):
            source.skip(1)
            return pairs if begin == "{" else found
        if done and not (yield from source.follows(",")):
            if source.ended and not source.text:
                raise cut()
            raise NotACall
        if done:
            source.skip(1)
            yield from source.space()
            if (yield from source.follows(close)):
                continue
        if source.ended and not source.text:
            raise cut()
        try:
            item, text = yield from value(source, quotes, depth + 1)
        except Cut as inner:
            raise cut(inner.text if begin != "{" else "") from None
        if begin == "{":
            key = text if text is not None else json_text(item)
            yield from source.space()
            if not (yield from source.follows(":")):
                if source.ended and not source.text:
                    raise cut()
                raise NotACall
            source.skip(1)
            try:
                pairs[key], _ = yield from value(source, quotes, depth + 1)
            except Cut as inner:
                raise cut(f"{json_text(key)}: {inner.text}" if inner.text else "") from None
        else:
            found.append(item)
        done += 1


def _word(source: Input) -> Waiting:
    while True:
        match = _BARE.match(source.text)
        n = 0 if match is None else match.end()
        source.looked += n + 1
        if n < len(source.text) or source.ended:
            return source.skip(n)
        yield


def quoted(source: Input, quote: str, quotes: tuple[str, ...]) -> Waiting:
    """Reads a text in quotes. A quote belongs to the text if it is escaped, or if what follows cannot follow a
    text."""
    source.skip(len(quote))
    escapes = len(quote) == 1
    parts: list[str] = []
    while True:
        mark = yield from source.until((quote, "\\") if escapes else (quote,), parts.append)
        if mark == "\\":
            after = yield from source.ahead(1)
            parts.append(mark + source.skip(len(after)))
            continue
        if not mark:
            raise Cut(json_text(_decoded("".join(parts), escapes))[:-1])
        ahead = (yield from source.ahead(16)).lstrip()
        if not ahead or ahead.startswith((*_BEHIND, "=")):
            return _decoded("".join(parts), escapes)
        parts.append(mark)


def _decoded(text: str, escapes: bool) -> str:
    """The text of a literal; pairs of surrogates become one character."""
    if not escapes:
        return text

    def one(match: re.Match[str]) -> str:
        code = match[1] or match[2] or match[3]
        if code:
            return chr(int(code, 16)) if int(code, 16) < 0x110000 else match[0]
        if match[4]:
            return ""
        return _ESCAPED.get(match[5], match[5] if match[5] in "\\'\"/" else match[0])

    found = _ESCAPE.sub(one, text)
    return found.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
