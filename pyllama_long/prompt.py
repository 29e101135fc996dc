"""A prompt as tokens, with those that the model wants around a text."""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Callable, Mapping, Set
from operator import index
from typing import Any

from pyllama_long.model import Model


def encode(
    model: Model,
    prompt: str | list[int],
    suffix: str | None = None,
    tokenize: Callable[[bytes, bool, bool], list[int]] | None = None,
    middle_last: bool = False,
) -> tuple[list[int], bool]:
    """Prompt tokens, with BOS and EOS around text if the model wants them, and whether the model is to fill in the
    middle before the suffix, which it is if it has the tokens for that. tokenize: (bytes, add_bos, special), if not
    the model's own. middle_last: the suffix comes first. Raises TypeError for what is not a prompt, and ValueError.
    """
    tokenize = tokenize or model.tokenize
    marks = None if suffix is None else model.fill_marks()
    fills = marks is not None
    if isinstance(prompt, str):
        body = tokenize(prompt.encode(), False, not fills) if prompt else []
    else:
        body = _as_tokens(prompt)
    if marks is not None:
        after = tokenize((suffix or "").encode(), False, False)
        before, after = [marks[0], *body], [marks[1], *after]
        body = [*after, *before, marks[2]] if middle_last else [*before, *after, marks[2]]
    if not isinstance(prompt, str) and suffix is None:
        return body, fills
    bos, eos, sep = model.token_bos(), model.token_eos(), model.token_sep()
    begin = [bos] if model.add_bos_token() and bos != -1 else []
    end = [sep if sep != -1 else eos] if model.add_eos_token() or sep != -1 else []
    if begin and body[:1] == begin:
        warnings.warn(
            f"the prompt begins with {model.token_get_text(bos)!r}, which is put there anyway: leave it out",
            RuntimeWarning,
            stacklevel=4,
        )
    return [*begin, *body, *end], fills


def _as_tokens(prompt: Any) -> list[int]:
    try:
        if isinstance(prompt, (bytes, bytearray, memoryview, Mapping, Set)):
            raise TypeError
        return [index(token) for token in prompt]
    except TypeError:
        raise TypeError(
            f"a prompt is a str, or a list of ints (tokens), not {reprlib.repr(prompt)}: "
            "decode bytes, and make whole numbers of the tokens"
        ) from None
