"""Anthropic's own client on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from running_server import Server, running

from pyllama_long.engine import EngineConfig

QUESTION: Any = [
    {"role": "user", "content": "The pass key for apricot is 40913. What is the pass key for apricot?"}
]
TOOL: Any = {
    "name": "weather",
    "description": "The weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"],
    },
}


@pytest.fixture(scope="module")
def server(demo_model: str) -> Iterator[Server]:
    with running(EngineConfig(demo_model, n_threads=1, n_ctx=1024, n_parallel=4, precision="f32")) as found:
        yield found


@pytest.fixture
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60) as found:
        yield found
    assert not server.faults, server.faults[0]


def test_a_message_answers(client: anthropic.Anthropic) -> None:
    found = client.messages.create(
        model="demo", max_tokens=24, messages=QUESTION, extra_body={"temperature": 0}
    )
    (block,) = found.content
    assert block.type == "text" and "40913" in block.text
    assert found.stop_reason == "end_turn"
    cached = found.usage.cache_read_input_tokens or 0
    assert found.usage.input_tokens + cached == 36


def test_max_tokens_and_stop_sequences_are_told(client: anthropic.Anthropic) -> None:
    options: Any = {"model": "demo", "messages": QUESTION, "extra_body": {"temperature": 0}}
    assert client.messages.create(max_tokens=2, **options).stop_reason == "max_tokens"
    found = client.messages.create(max_tokens=24, stop_sequences=["apricot"], **options)
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", "apricot")


def test_a_stream_builds_the_same_message(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model="demo", max_tokens=24, messages=QUESTION, extra_body={"temperature": 0}
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert "40913" in text and final.stop_reason == "end_turn"
    assert final.content[0].type == "text" and final.content[0].text == text
    assert final.usage.output_tokens > 5


def test_a_tool_is_called_and_its_result_read(client: anthropic.Anthropic) -> None:
    forced: Any = {"type": "tool", "name": "weather"}
    found = client.messages.create(
        model="demo", max_tokens=100, messages=QUESTION, tools=[TOOL], tool_choice=forced
    )
    assert found.stop_reason == "tool_use"
    (call,) = found.content
    assert call.type == "tool_use" and call.input["city"] in ("Rome", "Oslo")
    result: Any = {
        "type": "tool_result",
        "tool_use_id": call.id,
        "content": [{"type": "text", "text": "sunny"}],
    }
    turns: Any = [
        *QUESTION,
        {"role": "assistant", "content": [call.model_dump(include={"type", "id", "name", "input"})]},
        {"role": "user", "content": [result]},
    ]
    after = client.messages.create(model="demo", max_tokens=4, messages=turns, tools=[TOOL])
    assert after.content[0].type == "text"


def test_a_streamed_tool_call_has_its_input(client: anthropic.Anthropic) -> None:
    one: Any = {"type": "any", "disable_parallel_tool_use": True}
    with client.messages.stream(
        model="demo", max_tokens=100, messages=QUESTION, tools=[TOOL], tool_choice=one
    ) as stream:
        final = stream.get_final_message()
    assert final.stop_reason == "tool_use"
    (block,) = final.content
    assert block.type == "tool_use" and block.input["city"] in ("Rome", "Oslo")


def test_a_call_that_is_cut_is_told(client: anthropic.Anthropic) -> None:
    found = client.messages.create(
        model="demo", max_tokens=12, messages=QUESTION, tools=[TOOL], tool_choice={"type": "any"}
    )
    assert found.stop_reason == "max_tokens"


def test_tokens_are_counted(client: anthropic.Anthropic) -> None:
    assert client.messages.count_tokens(model="demo", messages=QUESTION).input_tokens == 36
    more = client.messages.count_tokens(model="demo", messages=QUESTION, system="Be brief.", tools=[TOOL])
    assert more.input_tokens > 60


def test_errors_have_anthropics_shape(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(
            model="demo", max_tokens=1, messages=[{"role": "user", "content": "word " * 2000}]
        )
    body: Any = caught.value.body
    assert body["type"] == "error" and body["error"]["code"] == "context_length_exceeded"
    image: Any = {"type": "image", "source": {"type": "url", "url": "http://localhost/x.png"}}
    with pytest.raises(anthropic.BadRequestError, match="image"):
        client.messages.create(model="demo", max_tokens=1, messages=[{"role": "user", "content": [image]}])
