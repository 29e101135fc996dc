"""Gives a trained model a larger vocabulary: BPE continues merging, and each new token gets a row.

Tokens keep their ids, except for the marks, which stay last. A word that is one token instead of three is found again
in a long text by that token, and not by pieces that many words share.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train_demo.errors import TrainError, need

RARE = 3  # words that occur less often do not become tokens
OF_PIECES, OF_CHANCE = 0.6, 0.8  # parts of a new row: together they give it about the length of the old ones


def grow_tokenizer(tok: Any, texts: Sequence[str], n_vocab: int, marks: Sequence[str]) -> Any:
    """The tokenizer with n_vocab tokens. Raises TrainError if the texts do not yield that many."""
    spec = json.loads(tok.to_str())
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    for mark in marks:
        vocab.pop(mark, None)
    words = _words(tok, texts)
    count, where = _pairs(words)
    while len(vocab) < n_vocab - len(marks):
        (a, b), times = max(count.items(), key=lambda item: (item[1], item[0]), default=(("", ""), 0))
        if times <= 0:
            raise TrainError(f"the corpus yields {len(vocab) + len(marks)} tokens only: give that as --vocab")
        merges.append([a, b])
        vocab.setdefault(a + b, len(vocab))
        for i in where.pop((a, b)):
            pieces, n = words[i]
            for pair in pairwise(pieces):
                count[pair] -= n
            words[i] = merged, n = _merge(pieces, a, b), n
            for pair in pairwise(merged):
                count[pair] += n
                where[pair].add(i)
        count.pop((a, b), None)
    for i, mark in enumerate(spec["added_tokens"]):
        mark["id"] = len(vocab) + i
    grown = need("tokenizers", "0.20").Tokenizer.from_str(json.dumps(spec))
    assert grown.get_vocab_size() == n_vocab
    return grown


def _words(tok: Any, texts: Sequence[str]) -> list[tuple[list[str], int]]:
    """(pieces, how often) of the words that are more than one token."""
    count: Counter[str] = Counter()
    for text in texts:
        for line in text.split("\n"):
            count.update(word for word, _ in tok.pre_tokenizer.pre_tokenize_str(line))
    split = ((word, n, [piece.value for piece in tok.model.tokenize(word)]) for word, n in count.items())
    return [(pieces, n) for _, n, pieces in split if n >= RARE and len(pieces) > 1]


def _pairs(words: list[tuple[list[str], int]]) -> tuple[Counter[tuple[str, str]], Any]:
    """How often two pieces follow one another, and in which words."""
    count: Counter[tuple[str, str]] = Counter()
    where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for i, (pieces, n) in enumerate(words):
        for pair in pairwise(pieces):
            count[pair] += n
            where[pair].add(i)
    return count, where


def _merge(pieces: list[str], a: str, b: str) -> list[str]:
    out: list[str] = []
    for piece in pieces:
        if out and out[-1] == a and piece == b:
            out[-1] = a + b
        else:
            out.append(piece)
    return out


def grow_rows(old: NDArray[np.float32], tok: Any, n_marks: int) -> NDArray[np.float32]:
    """Embedding rows [n_vocab, n_embd] for a tokenizer that grow_tokenizer() made, from the old ones. A new token's
    row is a mix of its pieces' rows and noise, so that it differs from other words with these pieces.
    """
    n_old, n_new = len(old) - n_marks, tok.get_vocab_size() - n_marks
    vocab = tok.get_vocab()
    pieces: dict[str, list[int]] = {text: [i] for text, i in vocab.items() if i < n_old}
    for a, b in json.loads(tok.to_str())["model"]["merges"]:
        if a in pieces and b in pieces:
            pieces.setdefault(a + b, pieces[a] + pieces[b])
    mean = old[:n_old].mean(0)
    deviation = (old[:n_old] - mean).std(0)
    random = np.random.default_rng(0)
    rows = np.empty((n_new + n_marks, old.shape[1]), np.float32)
    rows[:n_old], rows[n_new:] = old[:n_old], old[n_old:]
    for i in range(n_old, n_new):
        ids = pieces[tok.id_to_token(i)]
        rows[i] = mean + OF_PIECES * (old[ids] - mean).sum(0) / len(ids) ** 0.5
        rows[i] += OF_CHANCE * deviation * random.standard_normal(old.shape[1])
    return rows
