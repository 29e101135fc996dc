"""Shared by the engine's tests: whole answers, and the same answers from a LongLlama alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyllama_long import LongLlama, filler
from pyllama_long.arrays import as_ids
from pyllama_long.engine import (
    Engine,
    EngineConfig,
    Event,
    Finished,
    Handle,
    Request,
    Sampling,
    Started,
    Text,
    TokenInfo,
    Usage,
)
from pyllama_long.generate import generate

GREEDY = Sampling(temperature=0)
ENDLESS = Sampling(temperature=0, logit_bias={8190: -100})
NEAR = 1e-3  # of two top logits
NO_END = {"8190": -100}  # a logit_bias: the embedded model's <|im_end|>


@dataclass(frozen=True)
class Answer:
    events: list[Event]
    text: str
    tokens: list[TokenInfo]
    cached: int
    reason: str
    stop_string: str | None
    usage: Usage

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]


def answer(handle: Handle | Iterable[Event]) -> Answer:
    """Reads a request to its end."""
    events = list(handle)
    texts = [event for event in events if isinstance(event, Text)]
    started = [event.n_cached for event in events if isinstance(event, Started)]
    end = events[-1]
    assert isinstance(end, Finished)
    return Answer(
        events,
        "".join(event.text for event in texts),
        [token for event in texts for token in event.tokens],
        started[0] if started else -1,
        end.reason,
        end.stop_string,
        end.usage,
    )


def prose(tokenizer: object, n: int, seed: int = 0) -> list[int]:
    """n tokens of sentences, different for each seed. tokenizer: an Engine or a LongLlama."""
    sentences = filler.sentences()
    order = np.random.default_rng(seed).permutation(len(sentences))
    text = " ".join(sentences[i] for i in order).encode()
    ids: list[int] = tokenizer.tokenize(text)  # type: ignore[attr-defined]
    assert len(ids) >= n
    return ids[:n]


def alone(llm: LongLlama, prompt: Sequence[int], n: int) -> list[int]:
    """The greedy answer that a LongLlama gives to the prompt, read from its beginning; at most n tokens."""
    llm.sequence.keep(0)
    llm.reset()
    found: list[int] = []
    for token in generate(llm, as_ids(prompt), turn=llm.start(), room=n, temp=0):
        if token == llm.token_eos():
            break
        found.append(token)
        if len(found) == n:
            break
    return found


def assert_same(llm: LongLlama, prompt: Sequence[int], given: Sequence[int], expected: Sequence[int]) -> None:
    """Checks that two greedy answers are equal up to a token where the two top logits were closer than NEAR."""
    given, expected = list(given), list(expected)
    if given == expected:
        return
    n = min(len(given), len(expected))
    at = next((i for i in range(n) if given[i] != expected[i]), n)
    llm.sequence.keep(0)
    llm.reset()
    llm.eval([*prompt, *expected[:at]])
    top = np.sort(llm.scores[-1])[-2:]
    assert top[1] - top[0] < NEAR, f"token {at} of {len(expected)}: {given[at:][:1]}, not {expected[at:][:1]}"


def memory() -> int:
    """KiB of private memory that this process holds, in main memory or swapped out."""
    with open("/proc/self/status") as f:
        fields = dict(line.split(":", 1) for line in f)
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "VmSwap"))


def stored(demo_model: str, folder: Path) -> EngineConfig:
    """Room for two texts of 400 tokens, and for many more in memory and on disk."""
    return EngineConfig(
        demo_model,
        n_ctx=1024,
        rope="native",
        precision="f32",
        cache_ram=1 << 28,
        cache_disk=1 << 28,
        cache_dir=str(folder / "cache"),
    )


def ask(engine: Engine, prompt: list[int], n: int = 8, salt: str = "") -> Answer:
    return answer(engine.submit(Request(prompt, n, GREEDY, salt=salt)))


def files(config: EngineConfig) -> list[Path]:
    assert config.cache_dir is not None
    return sorted(Path(config.cache_dir).glob("*.seq"))
