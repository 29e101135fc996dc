"""llama.cpp's samplers as set by a request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from running_server import running

from pyllama_long.engine import Engine, EngineConfig, Request, Sampling, Text


@pytest.fixture(scope="module")
def engine(demo_model: str) -> Iterator[Engine]:
    with Engine(EngineConfig(demo_model, n_ctx=1024, n_parallel=1, n_threads=2)) as engine:
        yield engine


def ids(engine: Engine, n: int = 24, prompt: bytes = b"It was a", **options: Any) -> list[int]:
    handle = engine.submit(Request(engine.tokenize(prompt), n, Sampling(**options)))
    return [token.id for event in handle if isinstance(event, Text) for token in event.tokens]


GREEDY: dict[str, dict[str, Any]] = {
    "one of the likeliest": {"samplers": ["top_k"], "top_k": 1},
    "nothing below the likeliest": {"top_n_sigma": 1e-4, "samplers": ["top_n_sigma", "temperature"]},
    "no surprise": {"mirostat": 2, "mirostat_tau": 0.0, "mirostat_eta": 0.0},
    "a range of temperatures from 0": {"temperature": 1e-5},
}


@pytest.mark.parametrize("name", GREEDY)
def test_what_narrows_to_the_likeliest(engine: Engine, name: str) -> None:
    options: dict[str, Any] = {"temperature": 5.0, "seed": 1} | GREEDY[name]
    assert ids(engine, **options) == ids(engine, temperature=0)


CHANGING: list[dict[str, Any]] = [
    {"mirostat": 1},
    {"mirostat": 2, "mirostat_tau": 9.0},
    {"xtc_probability": 1.0, "xtc_threshold": 0.01},
    {"dynatemp_range": 0.7, "dynatemp_exponent": 2.0},
    {"samplers": ["temperature"]},
    {"dry_multiplier": 50.0, "dry_allowed_length": 1},
    {"top_n_sigma": 0.2},
]


@pytest.mark.parametrize("options", CHANGING, ids=str)
def test_each_changes_the_answer_and_keeps_to_the_seed(engine: Engine, options: dict[str, Any]) -> None:
    plain: dict[str, Any] = {"temperature": 1.0, "seed": 3}
    if "dry_multiplier" in options:  # one token again and again
        plain["logit_bias"] = {ids(engine, 1, temperature=0)[0]: 60.0}
    found = ids(engine, **plain, **options)
    assert found == ids(engine, **plain, **options)
    assert found != ids(engine, **plain)


def test_the_likeliest_are_left_out(engine: Engine) -> None:
    likeliest = ids(engine, 1, temperature=0)
    options: dict[str, Any] = {"xtc_probability": 1.0, "xtc_threshold": 0.001, "min_p": 0.0, "top_p": 1.0}
    assert all(ids(engine, 1, temperature=1.0, seed=seed, **options) != likeliest for seed in range(8))


def test_penalties_look_back_as_far_as_asked(engine: Engine) -> None:
    plain = ids(engine, temperature=0, repeat_penalty=1.0)
    assert ids(engine, temperature=0, repeat_penalty=50.0, repeat_last_n=0) == plain
    whole = ids(engine, 60, temperature=0, repeat_penalty=1e3, repeat_last_n=-1)
    assert len(set(whole)) == len(whole)


@pytest.mark.parametrize("mirostat", [1, 2])
def test_a_grammar_holds_beside_mirostat(engine: Engine, mirostat: int) -> None:
    found = ids(engine, temperature=1.5, mirostat=mirostat, seed=2, grammar="root ::= [a-c]{6}")
    text = engine.detokenize(found).decode()
    assert len(text) == 6 and set(text) <= set("abc")


@pytest.mark.parametrize(
    "options",
    [
        {"mirostat": 3},
        {"samplers": ["banana"]},
        {"samplers": ["top_k", "top_k"]},
        {"dry_base": float("nan")},
        {"xtc_threshold": -0.1},
        {"repeat_last_n": -2},
        {"dry_sequence_breakers": ["x"] * 65},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Sampling(**options)


def test_they_come_through_the_server(demo_model: str) -> None:
    config = EngineConfig(demo_model, n_ctx=1024, n_parallel=1, n_threads=2)
    with running(config) as server, server.client() as client:

        def said(path: str = "/completion", **more: Any) -> httpx.Response:
            body = {"prompt": "It was a", "max_tokens": 16, "temperature": 5.0, "seed": 1}
            return client.post(path, json=body | more)

        likeliest = said(temperature=0).json()["content"]
        assert said(samplers="k", top_k=1).json()["content"] == likeliest
        assert said(samplers=["top_k"], top_k=1).json()["content"] == likeliest
        assert (
            said("/v1/completions", mirostat=2, mirostat_tau=0, mirostat_eta=0).json()["choices"][0]["text"]
            == likeliest
        )
        refused = said(samplers=["infill"])
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "samplers"
