"""Regular expressions of JSON schemas in the few signs that llama_cpp's converter reads, and so that what fits one is
the inside of a JSON string: quotes, backslashes and control characters are written escaped, or not at all."""

from __future__ import annotations

import re

CONTROL = r"\x00-\x1F\x7F"
_UNSAFE = rf'"\\{CONTROL}'  # of a negated class, so that it lets no such character in
_SHORT = {"\n": "n", "\t": "t", "\r": "r", "\f": "f", "\b": "b", '"': '"', "\\": "\\"}  # as JSON escapes them
_SIGNS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_CLASSES = {"d": "0-9", "w": "A-Za-z0-9_", "s": r"\x20"}
_QUANTIFIER = re.compile(r"\{\d*(,\d*)?\}")
_GROUP = re.compile(r"\((\?(:|P?<\w+>))?(?!\?)")
_CODE = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})")


def rewrite(pattern: str) -> str:
    """The pattern between ^ and $, which it gets where it lacks them. Raises ValueError for what has no grammar."""
    begins, ends = pattern.startswith("^"), re.search(r"(?<!\\)(\\\\)*\$$", pattern) is not None
    body = _Reader(pattern[begins : len(pattern) - ends]).read()
    if begins and ends:
        return f"^{body}$"
    return f"^{'' if begins else '.*'}({body}){'' if ends else '.*'}$"


def _character(c: str) -> str:
    """One character, as it stands in JSON."""
    if c in _SHORT:
        return rf"([\\][{_member(_SHORT[c])}])"
    if ord(c) < 0x20 or c == "\x7f":
        return r"([\\][u]" + "".join(f"[{digit}]" for digit in f"{ord(c):04x}") + ")"
    return c if c.isalnum() or ord(c) > 0x7F else f"[{_member(c)}]"


def _member(c: str) -> str:
    """A character of a class, of which it is no sign."""
    return c if c.isalnum() or ord(c) > 0x7F else f"\\x{ord(c):02X}"


class _Reader:
    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def read(self) -> str:
        out = []
        while self._at < len(self._text):
            c = self._text[self._at]
            if c == "\\":
                out.append(self._escape())
            elif c == "[":
                out.append(self._class())
            elif c == "(":
                found = _GROUP.match(self._text, self._at)
                if found is None:
                    raise ValueError("a pattern has no groups but (...) and (?:...)")
                self._at = found.end()
                out.append("(")
            elif c in "*+?" or _QUANTIFIER.match(self._text, self._at):
                out.append(self._quantifier())
            elif c in "^$":
                raise ValueError(
                    f"{c} may stand at the {'beginning' if c == '^' else 'end'} of a pattern only"
                )
            else:
                self._at += 1
                out.append(c if c in ".|)" else _character(c))
        return "".join(out)

    def _quantifier(self) -> str:
        found = _QUANTIFIER.match(self._text, self._at)
        sign = found.group() if found else self._text[self._at]
        self._at += len(sign)
        if self._text[self._at : self._at + 1] == "?":  # which of several fits comes first is no matter here
            self._at += 1
        return sign

    def _sign(self) -> str:
        """The character that the escape at this place stands for, or its letter after a backslash."""
        self._at += 1
        code = _CODE.match(self._text, self._at)
        if code:
            self._at = code.end()
            return chr(int(code.group(1) or code.group(2), 16))
        c = self._text[self._at]
        self._at += 1
        if c in _SIGNS:
            return _SIGNS[c]
        return "\\" + c if c.isalnum() else c

    def _escape(self) -> str:
        sign = self._sign()
        if len(sign) == 1:
            return _character(sign)
        if sign[1] in _CLASSES:
            return f"[{_CLASSES[sign[1]]}]"
        if sign[1].lower() in _CLASSES:
            return f"[^{_CLASSES[sign[1].lower()]}{_UNSAFE}]"
        raise ValueError(f"a pattern may not have {sign}")

    def _class(self) -> str:
        self._at += 1
        negated = self._text[self._at] == "^"
        self._at += negated
        members, special, first = [], "", True
        while first or self._text[self._at] != "]":
            first, low = False, self._element()
            if len(low) == 2:
                members.append(_CLASSES[low[1]])
                continue
            high = low
            if self._text[self._at] == "-" and self._text[self._at + 1] != "]":
                self._at += 1
                high = self._element()
            if negated:
                members.append(f"{_member(low)}-{_member(high)}")
                continue
            special += "".join(c for c in _SHORT if low <= c <= high)
            members += _without_special(ord(low), ord(high))
        self._at += 1
        if negated:
            return f"[^{''.join(members)}{_UNSAFE}]"
        parts = [f"[{''.join(members)}]"] if members else []
        return "|".join(parts) if not special else f"({'|'.join([*parts, *map(_character, special)])})"

    def _element(self) -> str:
        """A character of a class, or a class within it as backslash and letter."""
        c = self._text[self._at]
        if c != "\\":
            self._at += 1
            return c
        sign = self._sign()
        if len(sign) == 2 and sign[1] not in _CLASSES:
            raise ValueError(f"a class of a pattern may not have {sign}")
        return sign


def _without_special(low: int, high: int) -> list[str]:
    """The range less control characters, the quote and the backslash."""
    found, begin = [], max(low, 0x20)
    for cut in (0x22, 0x5C, 0x7F):
        if begin <= cut <= high:
            if begin < cut:
                found.append((begin, cut - 1))
            begin = cut + 1
    if begin <= high:
        found.append((begin, high))
    return [_member(chr(a)) if a == b else f"{_member(chr(a))}-{_member(chr(b))}" for a, b in found]
