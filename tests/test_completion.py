"""Completions and chats: what llama_cpp.Llama gives for the same request, and what it lacks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pyllama_long import LongLlama
from pyllama_long._native import llama_cpp
from pyllama_long.errors import Cancelled, ContextOverflow

PROMPT = "Captain Ahab stood upon the deck, and the crew"
MESSAGES = [{"role": "user", "content": "Who stood upon the deck?"}]

Run = Callable[[Any], Any]


def plain(response: Any) -> Any:
    """A response without its id and time, logprobs apart, numbers rounded."""
    response = {k: v for k, v in response.items() if k not in ("id", "created")}
    return json.loads(json.dumps(response, default=float), parse_float=lambda x: round(float(x), 4))


def joined(chunks: list[Any]) -> str:
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


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


def test_token_prompts(llm: LongLlama, upstream: Any) -> None:
    tokens = upstream.tokenize(PROMPT.encode())
    assert tokens == llm.tokenize(PROMPT.encode())
    assert plain(llm(tokens, max_tokens=8, temperature=0)) == plain(
        upstream(tokens, max_tokens=8, temperature=0)
    )
    echoed = llm(tokens, max_tokens=4, temperature=0, echo=True)["choices"][0]["text"]
    assert echoed.startswith(PROMPT)


def test_empty_prompt_begins_with_bos(llm: LongLlama) -> None:
    found = llm("", max_tokens=8, temperature=0)
    assert found["usage"] == {"prompt_tokens": 1, "completion_tokens": 8, "total_tokens": 9}
    assert joined(list(llm("", max_tokens=8, temperature=0, stream=True))) == found["choices"][0]["text"]


def test_logprobs_are_what_the_logits_say(llm: LongLlama, demo_model: str) -> None:
    found = llm(PROMPT, max_tokens=1, temperature=0, logprobs=1, echo=True)["choices"][0]
    block = found["logprobs"]
    tokens = [*llm.tokenize(PROMPT.encode()), int(np.argmax(llm.scores[-1]))]
    everything = LongLlama(demo_model, n_ctx=512, n_batch=64, logits_all=True, precision="f32")
    everything.eval(tokens[:-1])
    rows = llama_cpp.Llama.logits_to_logprobs(everything._scores)
    expected = [float(row[token]) for row, token in zip(rows, tokens[1:], strict=True)]
    everything.close()
    assert block["token_logprobs"][0] is None
    assert np.allclose(block["token_logprobs"][1:], expected[1:], atol=1e-4)
    assert "".join(block["tokens"]) == found["text"]
    assert [found["text"][i] for i in block["text_offset"]] == [t[0] for t in block["tokens"]]
    json.dumps(found)


def test_logprobs_after_a_cached_prompt(llm: LongLlama) -> None:
    runs = [plain(llm(PROMPT, max_tokens=3, temperature=0, logprobs=1, echo=True)) for _ in range(2)]
    assert runs[0] == runs[1]


def test_suffix_is_appended_where_the_model_has_no_fim_tokens(llm: LongLlama) -> None:
    found = llm(PROMPT, suffix=" THE END", max_tokens=4, temperature=0)["choices"][0]["text"]
    assert found == llm(PROMPT, max_tokens=4, temperature=0)["choices"][0]["text"] + " THE END"


def test_grammar(llm: LongLlama) -> None:
    from llama_cpp.llama_grammar import LlamaGrammar

    grammar = LlamaGrammar.from_string('root ::= "yes" | "no"', verbose=False)
    assert llm(PROMPT, grammar=grammar, max_tokens=8, seed=1)["choices"][0]["text"] in ("yes", "no")
    # llama.cpp's own sampler would hold these for hours.
    for hostile in ('root ::= x{200}\nx ::= "a"? "b"? "c"?', 'root ::= r\nr ::= "a" r r | ""'):
        text = llm(PROMPT, grammar=LlamaGrammar(_grammar=hostile), max_tokens=8, seed=1)["choices"][0]["text"]
        assert set(text) <= set("abc")
    broken = LlamaGrammar(_grammar="root ::= (")
    with pytest.raises(ValueError, match="grammar cannot be read"):
        llm(PROMPT, grammar=broken, max_tokens=8)


def test_logits_processors_see_ids_and_logits_and_join_with_bias(llm: LongLlama) -> None:
    seen: list[int] = []

    def force(ids: Any, scores: Any) -> Any:
        seen.append(len(ids))
        assert scores.shape == (llm.n_vocab(),)
        scores[:] = -math.inf
        scores[[400, 401]] = 1.0
        return scores

    n = len(llm.tokenize(PROMPT.encode()))
    for processors in (force, [force], llama_cpp.LogitsProcessorList([force])):
        seen.clear()
        options: dict[str, Any] = {"logits_processor": processors, "logit_bias": {401: 1.0}}
        found = llm(PROMPT, max_tokens=3, temperature=0, **options)["choices"][0]["text"]
        assert found.encode() == llm.detokenize([401] * 3)
        assert seen == [n, n + 1, n + 2]


def test_errors_in_logits_processors_are_raised(llm: LongLlama) -> None:
    def broken(_ids: Any, _scores: Any) -> Any:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        llm(PROMPT, logits_processor=[broken])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        llm(PROMPT, logit_bias={99999: 1.0})


def test_stopping_criteria(llm: LongLlama, upstream: Any) -> None:
    n = len(llm.tokenize(PROMPT.encode()))

    def run(model: Any) -> Any:
        criteria = llama_cpp.StoppingCriteriaList([lambda ids, _logits: len(ids) >= n + 5])
        return plain(model(PROMPT, max_tokens=20, temperature=0, stopping_criteria=criteria))

    assert run(llm) == run(upstream)
    assert run(llm)["choices"][0]["finish_reason"] == "stop"


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


@pytest.mark.parametrize(
    "prompt",
    [[5.9, 6.2], b"abc", bytearray(b"abc"), {300: 1}, ["a"], [[300]], None, np.array([300.0])],
    ids=str,
)
def test_prompts_of_another_type(llm: LongLlama, prompt: Any) -> None:
    for stream in (False, True):
        with pytest.raises(TypeError, match="a prompt is a str, or a list of ints"):
            llm(prompt, max_tokens=1, stream=stream)


def test_prompts_of_numpy_integers(llm: LongLlama) -> None:
    expected = plain(llm([300, 301], max_tokens=4, temperature=0))
    for prompt in (np.array([300, 301]), [np.int32(300), np.int64(301)], (300, 301)):
        assert plain(llm(prompt, max_tokens=4, temperature=0)) == expected


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
