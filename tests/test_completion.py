"""Completions and chats: what llama_cpp.Llama gives for the same request, and what it lacks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from llamas import PROMPT, joined, plain

from pyllama_long import LongLlama
from pyllama_long._native import llama_cpp
from pyllama_long.errors import Cancelled, ContextOverflow

MESSAGES = [{"role": "user", "content": "Who stood upon the deck?"}]

Run = Callable[[Any], Any]


REQUESTS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0, "stop": "the"},
    {"temperature": 0, "stop": [" an", "of the"]},
    {"temperature": 1.0, "seed": 7},
    {"temperature": 0.8, "seed": 3, "repeat_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": 0.1},
    {"temperature": 0.9, "seed": 5, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9},
    {"mirostat_mode": 1, "seed": 4},
    {"mirostat_mode": 2, "seed": 4},
    {"temperature": 0, "echo": True},
    {"temperature": 0, "logprobs": 3},
    {"temperature": 0, "logprobs": 0},
    {"temperature": 0, "logprobs": 2, "echo": True},
    {"temperature": 0, "logit_bias": {300: 50.0}},
    {"temperature": 0, "model": "named", "max_tokens": 1},
    {"temperature": 0, "max_tokens": 480},
]


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_same_as_upstream(llm: LongLlama, upstream: Any, request_: dict[str, Any]) -> None:
    options = {"max_tokens": 24, **request_}
    assert plain(llm.create_completion(PROMPT, **options)) == plain(
        upstream.create_completion(PROMPT, **options)
    )


OWN_TEMPLATE = "chat_template.default"  # upstream's class prefers what it guesses


@pytest.mark.parametrize("request_", REQUESTS[:-3], ids=str)
def test_stream_same_as_upstream(llm: LongLlama, upstream: Any, request_: dict[str, Any]) -> None:
    options = {"max_tokens": 24, **request_, "stream": True}
    mine, theirs = ([plain(c) for c in m.create_completion(PROMPT, **options)] for m in (llm, upstream))
    assert joined(mine) == joined(theirs)
    assert mine[-1] == theirs[-1]
    assert mine[0].keys() == theirs[0].keys()
    if "stop" not in request_:
        assert mine == theirs


@pytest.mark.parametrize(
    "request_",
    [
        {"temperature": 0},
        {"temperature": 1.0, "seed": 11},
        {"temperature": 0, "logprobs": True, "top_logprobs": 2},
        {"temperature": 0, "response_format": {"type": "json_object"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
def test_chat_same_as_upstream(
    llm: LongLlama, upstream: Any, request_: dict[str, Any], stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "chat_format", OWN_TEMPLATE)

    def run(model: Any) -> Any:
        found = model.create_chat_completion(MESSAGES, max_tokens=16, stream=stream, **request_)
        return [plain(chunk) for chunk in found] if stream else plain(found)

    assert run(llm) == run(upstream)


def test_function_calls_have_upstreams_shape(
    llm: LongLlama, upstream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "chat_format", OWN_TEMPLATE)
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    tools = [{"type": "function", "function": {"name": "count", "parameters": schema}}]
    choice = {"type": "function", "function": {"name": "count"}}

    def run(model: Any) -> Any:
        found = model.create_chat_completion(
            MESSAGES, tools=tools, tool_choice=choice, max_tokens=24, temperature=0
        )
        call = found["choices"][0]["message"]["tool_calls"][0]
        assert call.pop("id").startswith("call__0_count_cmpl-")
        assert call["function"]["name"] == "count"
        return shape(plain(found))

    def shape(value: Any) -> Any:  # our prompt describes the tools, so the texts differ
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items()}
        return [shape(item) for item in value] if isinstance(value, list) else type(value)

    assert run(llm) == run(upstream)


def test_what_upstream_passes_over_is_acted_on_or_refused(llm: LongLlama) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    tool = {"type": "function", "function": {"name": "count", "parameters": schema}}

    def ask(**options: Any) -> Any:
        found = llm.create_chat_completion(MESSAGES, max_tokens=32, temperature=0, **options)
        return found["choices"][0]["message"]

    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert isinstance(json.loads(ask(response_format=asked)["content"])["n"], int)
    assert ask(tools=[tool], tool_choice="required")["tool_calls"][0]["function"]["name"] == "count"
    for options, message in (
        ({"response_format": {"type": "xml"}}, "'xml' is no type; known: text"),
        ({"response_format": {"type": "json_schema"}}, "json_schema needs a schema"),
        ({"tools": [tool, tool], "tool_choice": "required"}, "takes one tool here, and there are 2"),
        ({"tool_choice": "required"}, "takes one tool here, and there are 0"),
        ({"tools": [tool], "tool_choice": "any"}, "'any'; known: none, auto, required"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(**options)
    with pytest.raises(ValueError, match="no messages"):
        llm.create_chat_completion([])
    wrong: list[Any] = ["hello", [{"content": "hello"}], ["hello"]]
    for messages in wrong:
        with pytest.raises(ValueError, match="give a list of"):
            llm.create_chat_completion(messages)


def test_a_prompt_that_is_too_long_is_refused_before_anything_runs(llm: LongLlama) -> None:
    tokens = [300] * 600
    for stream in (False, True):
        with pytest.raises(
            ContextOverflow, match=r"Requested tokens \(600\) exceed context window of 512: shorten"
        ) as e:
            llm(tokens, stream=stream)
        assert (e.value.n_tokens, e.value.n_ctx) == (600, 512)
    with pytest.raises(ValueError, match="exceed context window"):
        llm.create_chat_completion([{"role": "user", "content": "word " * 600}])


def test_max_tokens_that_do_not_fit_are_said(llm: LongLlama) -> None:
    tokens = llm.tokenize(b"the sea " * 400)[:500]
    with pytest.warns(RuntimeWarning, match="max_tokens=100 does not fit: after 500 prompt tokens"):
        found = llm(tokens, max_tokens=100, temperature=0, logit_bias={llm.token_eos(): -100.0})
    assert found["usage"]["completion_tokens"] == 12
    assert found["choices"][0]["finish_reason"] == "length"


def test_streams_cost_the_same_per_token(llm: LongLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = 0
    piece = llm._model.piece

    def count(token: int, special: bool = False) -> bytes:
        nonlocal pieces
        pieces += 1
        return piece(token, special)

    monkeypatch.setattr(llm._model, "piece", count)
    n = len(list(llm(PROMPT, max_tokens=100, temperature=0, stream=True)))
    assert pieces <= n


@pytest.mark.parametrize("request_", [{"max_tokens": 1}, {"max_tokens": 9}, {"stop": "the"}], ids=str)
def test_a_prepared_completion_counts_while_it_streams(llm: LongLlama, request_: dict[str, Any]) -> None:
    expected = llm(PROMPT, temperature=0, **request_)
    run = llm.prepare_completion(PROMPT, temperature=0, **request_)
    assert run.usage["completion_tokens"] == 0
    assert joined(list(run.stream())) == expected["choices"][0]["text"]
    assert run.usage == expected["usage"]


def test_cancel_from_another_place(llm: LongLlama) -> None:
    stream = llm(PROMPT, max_tokens=100, temperature=0, stream=True)
    next(stream)
    llm.cancel()
    with pytest.raises(Cancelled):
        list(stream)
    assert llm(PROMPT, max_tokens=2, temperature=0)["usage"]["completion_tokens"] == 2


def test_a_later_call_ends_an_open_stream(llm: LongLlama) -> None:
    stream = llm(PROMPT, max_tokens=100, temperature=0, stream=True)
    next(stream)
    llm("Another", max_tokens=1)
    with pytest.raises(RuntimeError, match="another call"):
        next(stream)


def test_same_prompt_again_gives_the_same(llm: LongLlama) -> None:
    llm.reset()
    first = plain(llm(PROMPT, max_tokens=12, temperature=0))
    assert plain(llm(PROMPT, max_tokens=12, temperature=0)) == first
    assert plain(llm("Something else entirely", max_tokens=2, temperature=0)) != first
    assert plain(llm(PROMPT, max_tokens=12, temperature=0)) == first


def test_other_tokenizers_stream_too(llm: LongLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    class Foreign(llama_cpp.llama_tokenizer.BaseLlamaTokenizer):
        longest = 0

        def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
            return llm._model.tokenize(text, add_bos, special)

        def detokenize(
            self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False
        ) -> bytes:
            self.longest = max(self.longest, len(prev_tokens or []))
            return llm._model.detokenize(tokens, special)

    expected = llm(PROMPT, max_tokens=60, temperature=0)["choices"][0]["text"]
    foreign = Foreign()
    monkeypatch.setattr(llm, "tokenizer_", foreign)
    assert joined(list(llm(PROMPT, max_tokens=60, temperature=0, stream=True))) == expected
    assert foreign.longest <= 32
