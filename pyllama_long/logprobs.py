"""Log-probabilities of sampled and of prompt tokens, taken while their logits are there: no table of all
logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyllama_long._native import llama_cpp
from pyllama_long.arrays import FloatArray, IntArray
from pyllama_long.sequence import Progress, TokenSequence

if TYPE_CHECKING:
    from llama_cpp.llama_types import CompletionLogprobs

_ROWS_BYTES = 64 << 20  # bytes of a prompt chunk's logits that are held at a time


class Logprob(NamedTuple):
    """A token, its log-probability, and the likeliest tokens with theirs; None for a token without a
    predecessor."""

    token: int
    logprob: float | None
    top: list[tuple[int, float]] | None


def score(logits: FloatArray, token: int, k: int) -> Logprob:
    """logits: [n_vocab]; k: how many of the likeliest tokens to list."""
    logprobs = llama_cpp.Llama.logits_to_logprobs(logits)
    k = min(k, len(logits))
    best = np.argpartition(logits, len(logits) - k)[len(logits) - k :] if k else np.empty(0, np.int64)
    order = best[np.lexsort((-best, -logprobs[best]))]
    return Logprob(token, float(logprobs[token]), [(int(i), float(logprobs[i])) for i in order])


def score_prompt(
    sequence: TokenSequence,
    ids: IntArray,
    k: int,
    progress: Progress | None = None,
    store: Callable[[int, FloatArray], None] | None = None,
) -> list[Logprob]:
    """One Logprob per prompt token; evaluates a text from its beginning, which is kept for it to begin again. store:
    takes (first, rows), all logits of the tokens from first on."""
    found = [Logprob(int(ids[0]), None, None)]

    def visit(first: int, rows: FloatArray) -> None:
        if store is not None:
            store(first, rows)
        after = ids[first + 1 : first + 1 + len(rows)]
        found.extend(score(row, int(token), k) for row, token in zip(rows, after, strict=False))

    sequence.keep(0)
    chunk = rows_at_once(sequence.n_batch, sequence.n_vocab)
    sequence.extend(ids, progress=progress, visit=visit, chunk=chunk)
    sequence.length = 0
    return found


def rows_at_once(n_batch: int, n_vocab: int) -> int:
    """How many tokens of a prompt are scored at a time, so that their logits take little memory."""
    return min(n_batch, max(1, _ROWS_BYTES // (4 * n_vocab)))


def as_block(
    scores: Sequence[Logprob],
    offset: int,
    string: Callable[[int], str],
    bos: int,
    first_is_null: bool = False,
) -> CompletionLogprobs:
    """The `logprobs` field of a completion; offset: place of the first token in the text, in characters. string: the
    text of a token. BOS is left out. first_is_null: the first token gets no figures, as in OpenAI's echo."""
    block: CompletionLogprobs = {"tokens": [], "text_offset": [], "token_logprobs": [], "top_logprobs": []}
    for token, logprob, top in scores:
        if token == bos:
            continue
        text = string(token)
        block["tokens"].append(text)
        block["text_offset"].append(offset)
        offset += len(text)
        if logprob is None or top is None or (first_is_null and len(block["tokens"]) == 1):
            block["token_logprobs"].append(None)
            block["top_logprobs"].append(None)
        else:
            listed = {string(i): value for i, value in top}
            block["token_logprobs"].append(logprob)
            block["top_logprobs"].append({**listed, text: logprob})
    return block
