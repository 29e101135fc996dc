"""Texts that tokenizers meet: long runs of eight kinds, and short texts of every sort of character."""

from __future__ import annotations

import random

_RUNS = {
    "letters": "A",
    "digits": "7",
    "blanks": " ",
    "dots": ".",
    "han": "語",
    "line breaks": "\n",
    "emoji, marks": "\U0001f999\u0301",
}
_PARTS = (
    *"aAzZbé ßЖΩ語漢ーあ한ا०٣7 09 \t\n\r\x0b\u00a0\u2003.,!?",
    *"'\"-_/\\()[]{}<>=+*&^%$#@~`|…。、！～€∑\u0301\u0e33\u200d\U0001f999\0",
    *(
        "'s",
        "'LL",
        "'re",
        "'T",
        " the",
        " The",
        "camelCase",
        "HTTPServer",
        "123",
        "1234567",
        "  ",
        "    ",
        "\r\n",
        "\n\n",
    ),
    *("<sentinel:12>", "IMGIMGABZ", "…。", " x", "\u2581", "e\u0301", "ŉ", "ǅ", "\ufffd", "\u0600"),
)
KINDS = (*_RUNS, "mixed")


def run(kind: str, n: int) -> str:
    """A text of this kind with n characters."""
    if kind != "mixed":
        unit = _RUNS[kind]
        return (unit * (n // len(unit) + 1))[:n]
    rng, out, size = random.Random(n), [], 0
    while size < n:
        out.append(rng.choice(_PARTS) * rng.choice((1, 1, 1, 2, 40, 2000)))
        size += len(out[-1])
    return "".join(out)[:n]


def short(count: int, seed: int = 0) -> list[str]:
    """Texts of up to 40 parts, which often repeat."""
    rng = random.Random(seed)
    out = []
    for _ in range(count):
        few = rng.choices(_PARTS, k=rng.randint(1, 12))
        out.append("".join(rng.choice(few) * rng.choice((1, 1, 2, 3, 9)) for _ in range(rng.randint(1, 40))))
    return out
