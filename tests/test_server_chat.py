"""OpenAI's own client on chats."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import openai
import pytest
from asking import QUESTION, WEATHER, ask
from pydantic import BaseModel
from running_server import Server


@pytest.fixture
def client(openai_client: openai.OpenAI) -> openai.OpenAI:
    return openai_client


def test_a_chat_answers_and_counts(client: openai.OpenAI) -> None:
    found = ask(client)
    assert "40913" in found.choices[0].message.content
    assert found.choices[0].finish_reason == "stop"
    assert found.usage.prompt_tokens == 36
    assert found.usage.total_tokens == 36 + found.usage.completion_tokens


def test_the_second_turn_comes_from_the_cache(client: openai.OpenAI) -> None:
    first = ask(client, "Remember this sentence, it is the first of two turns.")
    said = first.choices[0].message.content
    again = client.chat.completions.create(
        model="demo",
        max_tokens=2,
        temperature=0,
        messages=[
            {"role": "user", "content": "Remember this sentence, it is the first of two turns."},
            {"role": "assistant", "content": said},
            {"role": "user", "content": "Go on."},
        ],
    )
    assert again.usage is not None and again.usage.prompt_tokens_details is not None
    cached = again.usage.prompt_tokens_details.cached_tokens or 0
    assert cached >= first.usage.prompt_tokens + first.usage.completion_tokens - 2


def test_a_stream_is_the_same_answer(client: openai.OpenAI) -> None:
    whole = ask(client).choices[0].message.content
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert not chunks[-1].choices and chunks[-1].usage.prompt_tokens == 36
    assert all(c.usage is None for c in chunks[:-1])


def test_without_include_usage_no_chunk_has_usage(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True))
    assert all(c.usage is None and c.choices for c in chunks)


def test_async_streams_run_beside_one_another(server: Server) -> None:
    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60) as client:

            async def one(i: int) -> str:
                stream = await client.chat.completions.create(
                    model="demo",
                    messages=[{"role": "user", "content": QUESTION}],
                    stream=True,
                    temperature=0,
                    max_tokens=24 + i,
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            return await asyncio.gather(*(one(i) for i in range(8)))

    found = asyncio.run(all_of_them())
    assert len(set(found)) == 1 and "40913" in found[0]


def test_logprobs_fit_the_text(client: openai.OpenAI) -> None:
    found = ask(client, logprobs=True, top_logprobs=3, max_tokens=8).choices[0]
    listed = found.logprobs.content
    assert b"".join(bytes(t.bytes) for t in listed).decode() == found.message.content
    for token in listed:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token  # greedy
        assert math.isclose(token.top_logprobs[0].logprob, token.logprob, abs_tol=1e-4)
        assert sum(math.exp(t.logprob) for t in token.top_logprobs) <= 1.0001


def test_logprobs_of_a_stream_cover_every_token(client: openai.OpenAI) -> None:
    chunks = list(ask(client, logprobs=True, stream=True, max_tokens=8))
    listed = [t for c in chunks for choice in c.choices if choice.logprobs for t in choice.logprobs.content]
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert len(listed) == 8 and b"".join(bytes(t.bytes) for t in listed).decode() == text


def test_n_choices_differ_and_the_seed_repeats_them(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {
        "n": 4,
        "temperature": 2.0,
        "seed": 7,
        "max_tokens": 12,
        "content": "Why?",
    }
    first, again = ask(client, **options), ask(client, **options)
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3]
    assert len(set(texts)) > 1
    assert texts == [choice.message.content for choice in again.choices]
    assert first.usage.completion_tokens > 12


def test_n_choices_of_a_stream_have_their_index(client: openai.OpenAI) -> None:
    chunks = list(ask(client, "Tell me.", n=3, stream=True, max_tokens=4, temperature=1.0))
    assert {c.choices[0].index for c in chunks} == {0, 1, 2}
    ends = [c for c in chunks if c.choices[0].finish_reason]
    assert len(ends) == 3


def test_stop_ends_the_answer_before_the_text(client: openai.OpenAI) -> None:
    found = ask(client, stop=["apricot"]).choices[0]
    assert found.message.content == "The pass key for " and found.finish_reason == "stop"
    pieces = [c.choices[0].delta.content or "" for c in ask(client, stop="apricot", stream=True)]
    assert "".join(pieces) == "The pass key for "


def test_max_completion_tokens_limits(client: openai.OpenAI) -> None:
    found = ask(client, max_tokens=None, max_completion_tokens=3)
    assert found.usage.completion_tokens == 3 and found.choices[0].finish_reason == "length"


def test_logit_bias_forbids_and_forces(client: openai.OpenAI, server: Server) -> None:
    (token,) = server.engine.tokenize(b" little", False)
    found = ask(client, max_tokens=4, logit_bias={str(token): 100})
    assert found.choices[0].message.content == " little" * 4


def test_an_answer_fits_its_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "ok": {"type": "boolean"}},
        "required": ["colour", "ok"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    for seed in range(4):
        found = ask(client, response_format=wanted, temperature=1.5, seed=seed, max_tokens=64)
        answer = json.loads(found.choices[0].message.content)
        assert answer["colour"] in ("red", "blue") and answer["ok"] in (True, False)


def test_parse_takes_definitions(client: openai.OpenAI) -> None:
    class Street(BaseModel):
        lit: bool

    class House(BaseModel):
        street: Street
        other: Street | None

    found = client.chat.completions.parse(
        model="demo",
        messages=[{"role": "user", "content": QUESTION}],
        response_format=House,
        temperature=0,
        max_tokens=64,
    )
    assert isinstance(found.choices[0].message.parsed, House)


def test_json_object_is_an_object(client: openai.OpenAI) -> None:
    found = ask(client, response_format={"type": "json_object"}, temperature=1.0, seed=5, max_tokens=200)
    text = found.choices[0].message.content
    assert text.startswith("{")
    if found.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_a_required_tool_is_called(client: openai.OpenAI) -> None:
    found = ask(client, tools=[WEATHER], tool_choice="required", max_tokens=120, parallel_tool_calls=False)
    choice = found.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "weather" and call.id
    assert arguments["city"] in ("Rome", "Oslo") and arguments["days"] in (1, 2)


def test_a_named_tool_is_called_once_in_a_stream(client: openai.OpenAI) -> None:
    other = {"type": "function", "function": {"name": "other", "parameters": {"type": "object"}}}
    named = {"type": "function", "function": {"name": "weather"}}
    chunks = list(ask(client, tools=[other, WEATHER], tool_choice=named, stream=True, max_tokens=120))
    deltas = [d for c in chunks for d in c.choices[0].delta.tool_calls or ()]
    assert deltas[0].function.name == "weather" and deltas[0].id and {d.index for d in deltas} == {0}
    assert json.loads("".join(d.function.arguments or "" for d in deltas))["city"] in ("Rome", "Oslo")
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_results_of_tools_are_read(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="demo",
        max_tokens=8,
        temperature=0,
        tools=[WEATHER],
        messages=[
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city": "Rome", "days": 1}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ],
    )
    assert found.choices[0].finish_reason in ("stop", "length")


def test_no_tool_is_called_with_none(client: openai.OpenAI) -> None:
    found = ask(client, tools=[WEATHER], tool_choice="none")
    assert found.choices[0].message.tool_calls is None and "40913" in found.choices[0].message.content


def test_overflow_is_the_error_that_clients_know(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(openai_client, "word " * 3000)
    error = caught.value
    body: Any = error.body
    n = body["n_prompt_tokens"]
    assert body["n_ctx"] == 2048 and n > 3000
    assert body["message"] == (
        f"This model's maximum context length is 2048 tokens. However, your messages resulted in {n} tokens: "
        f"request ({n} tokens) exceeds the available context size (2048 tokens)."
    )
    assert (error.type, error.param, error.code) == (
        "exceed_context_size_error",
        "messages",
        "context_length_exceeded",
    )
    with pytest.raises(openai.BadRequestError) as streamed:
        ask(openai_client, "word " * 3000, stream=True)
    assert streamed.value.code == "context_length_exceeded"
