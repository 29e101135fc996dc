"""A folder of text files as training material: tokenizer, token stream, sentences, key words.

The tokenizer is byte-level BPE with the splitting rule that llama.cpp calls qwen2 (single digits), so that
any text can be read, and four marks at the end: <|bos|>, <|im_start|>, <|im_end|>, <|pad|>.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train_demo.errors import TrainError, need
from train_demo.export import read_vocabulary
from train_demo.grow import grow_tokenizer

Ids = NDArray[np.int32]

MARKS = ("<|bos|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
SPLIT = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PLAIN = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "—": "--", "–": "-", "…": "...", "\xa0": " "}
    | dict.fromkeys("\ufeff_\r", "")
    | {"\t": " "}
)
SENTENCE = re.compile(r""".+?(?:[.!?]["')]*(?= )|$)""")
ENDING = re.compile("(?<=...)(?:ing|ed|es|er|s|e)$")
WORDS = 20_000  # words that keys are taken from; the rarer ones have several tokens
# Words of the tasks, repeated so that they become tokens whatever the corpus is.
TASK_WORDS = (
    "<|x|>user assistant system What is the pass key for remember number value key special magic secret code "
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. There is an "
    "important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz you about "
    "the important information there. Read the text and remember the numbers.\n"
)


@dataclass(frozen=True)
class Sentences:
    """flat [n_tokens]; sentence i is flat[start[i]:start[i + 1]]."""

    flat: Ids
    start: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start) - 1

    def __getitem__(self, i: int) -> list[int]:
        ids: list[int] = self.flat[self.start[i] : self.start[i + 1]].tolist()
        return ids

    @cached_property
    def _places(self) -> tuple[NDArray[np.int64], Ids]:
        """Places in flat, ordered by their token, and those tokens."""
        order = np.argsort(self.flat, kind="stable")
        return order, self.flat[order]

    def having(self, token: int, draw: random.Random) -> list[int]:
        """A sentence that contains the token, or None."""
        order, ordered = self._places
        first, end = np.searchsorted(ordered, (token, token + 1))
        if first == end:
            return []
        return self[int(np.searchsorted(self.start, order[draw.randrange(first, end)], "right")) - 1]


@dataclass(frozen=True)
class Part:
    """The material of one side, training or held out."""

    tokens: Ids
    sentences: Sentences
    words: list[str]

    @cached_property
    def ordered(self) -> list[str]:
        """The words in alphabetical order, in which neighbours begin alike."""
        return sorted(self.words)


def forms(word: str) -> list[str]:
    """Other words made from its stem, some of which do not exist."""
    stem = ENDING.sub("", word)
    return [stem + ending for ending in ("", "s", "ed", "ing", "er", "e", "es") if stem + ending != word]


@dataclass(frozen=True)
class Corpus:
    """Training material, and text and key words that are never trained on."""

    tokenizer: Any
    train: Part
    held: Part

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and corpus.npz."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        arrays: dict[str, Any] = {}
        for side, part in (("train", self.train), ("held", self.held)):
            arrays[f"{side}_tokens"] = part.tokens
            arrays[f"{side}_flat"] = part.sentences.flat
            arrays[f"{side}_start"] = part.sentences.start
            arrays[f"{side}_words"] = np.array(part.words)
        np.savez(folder / "corpus.npz", **arrays)

    @classmethod
    def load(cls, folder: Path) -> Corpus:
        """Reads what save() wrote."""
        with np.load(folder / "corpus.npz") as data:
            sides = [
                Part(
                    data[f"{side}_tokens"],
                    Sentences(data[f"{side}_flat"], data[f"{side}_start"]),
                    data[f"{side}_words"].tolist(),
                )
                for side in ("train", "held")
            ]
        return cls(read_tokenizer(folder / "tokenizer.json"), *sides)


def clean(text: str) -> str:
    """One paragraph per line, plain quotes and dashes, without Project Gutenberg's header and footer."""
    text = text.translate(PLAIN)
    if start := re.search(r"\*\*\*\s*START OF TH[^\n]*\n(?:[^\n]+\n)*", text):
        text = text[start.end() :]
    if end := re.search(r"\n\s*(\*\*\*\s*END OF TH|End of (the )?Project Gutenberg)", text):
        text = text[: end.start()]
    text = re.sub(r"\A\s*Produced by.*?\n\n", "", text, flags=re.S)
    if "\n\n" in text:  # lines are wrapped: a blank line ends a paragraph
        text = "\n".join(" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    lines = (re.sub(" +", " ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line) + "\n"


def read_folder(folder: Path) -> tuple[list[str], str]:
    """The cleaned texts of the folder's .txt files, and what is held out of training.

    Files whose name begins with `heldout` are held out, those with `validation` ignored, those with `code` taken
    line by line; without a held-out file the last hundredth of each text is. Raises TrainError when there is too
    little text.
    """
    files = sorted(folder.rglob("*.txt")) if folder.is_dir() else []
    texts: list[str] = []
    held = ""
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        text = text if file.name.startswith("code") else clean(text)
        if file.name.startswith("heldout"):
            held += text
        elif not file.name.startswith("validation"):
            texts.append(text)
    if sum(map(len, texts)) < 100_000:
        raise TrainError(f"{folder} has less than 100,000 characters in .txt files: name a folder of books")
    if not held:
        held = "\n".join(text[-len(text) // 100 :] for text in texts)
        texts = [text[: -len(text) // 100] for text in texts]
    return texts, held


def prepare(folder: Path, n_vocab: int = 3072, tokenizer: Path | None = None, seed: int = 0) -> Corpus:
    """Reads a folder of .txt files. tokenizer: a tokenizer.json to use in place of a new one; it grows to n_vocab."""
    texts, held = read_folder(folder)
    tok = read_tokenizer(tokenizer) if tokenizer else train_tokenizer(texts, n_vocab)
    if tok.get_vocab_size() < n_vocab:
        tok = grow_tokenizer(tok, texts, n_vocab, MARKS)
    words = key_words(texts, seed)
    most = len(words) * 4 // 5
    return Corpus(tok, _part(tok, texts, words[:most]), _part(tok, [held], words[most:]))


def _part(tok: Any, texts: Sequence[str], words: list[str]) -> Part:
    ids = [np.array(encoding.ids, np.int32) for encoding in tok.encode_batch(list(texts))]
    found = [s for text in texts for line in text.split("\n") for s in SENTENCE.findall(line) if s.strip()]
    lists = [encoding.ids for encoding in tok.encode_batch([" " + s.strip() for s in found])]
    start = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    flat = np.array([token for ids in lists for token in ids], np.int32)
    return Part(np.concatenate(ids), Sentences(flat, start), words)


def key_words(texts: Sequence[str], seed: int = 0) -> list[str]:
    """Up to WORDS words of 4 to 9 small letters in random order, without the most common ones."""
    count = Counter(word for text in texts for word in re.findall(r"\b[a-z]{4,9}\b", text))
    words = [word for word, _ in count.most_common(WORDS)]
    words = words[min(300, len(words) // 10) :]
    if len(words) < 100:
        raise TrainError("the corpus has fewer than 100 different words: it needs more text")
    random.Random(seed).shuffle(words)
    return words


def train_tokenizer(texts: Sequence[str], n_vocab: int) -> Any:
    """A byte-level BPE tokenizer of n_vocab tokens, the last four of them MARKS."""
    if n_vocab < 256 + len(MARKS):
        raise TrainError(f"a byte-level vocabulary has at least {256 + len(MARKS)} tokens, not {n_vocab}")
    tk = need("tokenizers", "0.20")
    tok = _byte_level(tk.models.BPE())
    trainer = tk.trainers.BpeTrainer(
        vocab_size=n_vocab - len(MARKS),
        initial_alphabet=tk.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator([*texts, *[TASK_WORDS] * 200], trainer)
    tok.add_special_tokens(list(MARKS))
    if tok.get_vocab_size() != n_vocab:
        raise TrainError(f"the corpus yields {tok.get_vocab_size()} tokens only: give that as --vocab")
    return tok


def _byte_level(bpe: Any) -> Any:
    tk = need("tokenizers", "0.20")
    tok, pre = tk.Tokenizer(bpe), tk.pre_tokenizers
    split = pre.Split(tk.Regex(SPLIT), "isolated")
    tok.pre_tokenizer = pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = tk.decoders.ByteLevel()
    return tok


def read_tokenizer(path: Path) -> Any:
    """Reads a tokenizer.json, or that of a GGUF of this script; its last tokens must be MARKS."""
    tk = need("tokenizers", "0.20")
    if path.suffix == ".gguf":
        tokens, merges = read_vocabulary(path)
        vocab = {token: i for i, token in enumerate(tokens) if token not in MARKS}
        tok = _byte_level(tk.models.BPE(vocab, [tuple(merge.split(" ")) for merge in merges]))
        tok.add_special_tokens(list(MARKS))
    else:
        tok = tk.Tokenizer.from_file(str(path))
    n = tok.get_vocab_size()
    if [tok.id_to_token(n - len(MARKS) + i) for i in range(len(MARKS))] != list(MARKS):
        raise TrainError(f"{path}: the last {len(MARKS)} tokens must be {' '.join(MARKS)}")
    return tok
