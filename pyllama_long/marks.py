"""Where messages begin and end in the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyllama_long.arrays import IntArray
from pyllama_long.model import Model


def of_tokens(model: Model, ids: IntArray) -> IntArray:
    """Indexes of the control tokens, of the first one where several follow each other. Most chat templates write them
    around every message, and texts of users contain none."""
    control = model.control_tokens[ids]
    begins = control.copy()
    begins[1:] &= ~control[:-1]
    return np.flatnonzero(begins).astype(np.int32)


def of_messages(model: Model, ids: IntArray, contents: Sequence[str]) -> IntArray:
    """The same for a rendered conversation with these texts, one per message: where the template writes no control
    tokens around them, the indexes of the tokens in which the texts begin. A text that is not found has none."""
    found = of_tokens(model, ids)
    texts = [content.strip().encode() for content in contents]
    if len(found) > len(texts):
        return found
    pieces = [model.piece(token, True) for token in ids.tolist()]
    ends = np.cumsum([len(piece) for piece in pieces])
    whole, at, places = b"".join(pieces), 0, set(found.tolist())
    for text in filter(None, texts):
        begin = whole.find(text, at)
        if begin >= 0:
            places.add(int(np.searchsorted(ends, begin, side="right")))
            at = begin + len(text)
    return np.array(sorted(places), np.int32)
