"""OpenAI's own openai_client on responses: items and the events that report them."""

from __future__ import annotations

import json
from typing import Any

import openai
from asking import QUESTION, WEATHER
from running_server import Server, events


def test_responses_answer(openai_client: openai.OpenAI) -> None:
    found = openai_client.responses.create(model="demo", input=QUESTION, temperature=0, max_output_tokens=24)
    assert "40913" in found.output_text and found.status == "completed"
    assert found.usage is not None and found.usage.input_tokens == 36


def test_responses_stream_events_in_order(openai_client: openai.OpenAI) -> None:
    items: Any = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]
    stream = openai_client.responses.create(
        model="demo", input=items, temperature=0, max_output_tokens=24, stream=True, instructions="Be brief."
    )
    found = list(stream)
    kinds = [event.type for event in found]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in found] == list(range(len(found)))
    last: Any = found[-1]
    deltas = "".join(event.delta for event in found if event.type == "response.output_text.delta")
    assert deltas == last.response.output_text


def test_a_response_that_is_cut_says_so_in_every_event(server: Server) -> None:
    body = {"input": "Tell me a story.", "max_output_tokens": 3, "stream": True, "temperature": 0}
    with server.client() as raw:
        found = events(raw.post("/v1/responses", json=body))
    (item,) = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    last = found[-1]
    assert last["type"] == "response.incomplete" and last["response"]["output"] == [item]
    assert item["status"] == "incomplete"


def test_logprobs_of_streamed_responses_come_with_the_text(server: Server) -> None:
    body: Any = {"input": QUESTION, "max_output_tokens": 8, "temperature": 0, "top_logprobs": 2}
    with server.client() as raw:
        whole = raw.post("/v1/responses", json=body).json()["output"][0]["content"][0]
        found = events(raw.post("/v1/responses", json=body | {"stream": True}))
    deltas = [event for event in found if event["type"] == "response.output_text.delta"]
    listed = [one for delta in deltas for one in delta["logprobs"]]
    assert len(listed) == 8 and b"".join(bytes(one["bytes"]) for one in listed).decode() == whole["text"]
    (done,) = [event for event in found if event["type"] == "response.output_text.done"]
    assert listed == done["logprobs"] == found[-1]["response"]["output"][0]["content"][0]["logprobs"]
    assert [one["token"] for one in listed] == [one["token"] for one in whole["logprobs"]]
    assert all(delta["logprobs"] for delta in deltas)


def test_responses_call_functions(openai_client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", **WEATHER["function"], "strict": False}
    found = openai_client.responses.create(
        model="demo", input="Weather?", tools=[tool], tool_choice="required", parallel_tool_calls=False
    )
    (call,) = found.output
    assert call.type == "function_call" and json.loads(call.arguments)["days"] in (1, 2)
    items: Any = [
        {"role": "user", "content": "Weather?"},
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]
    after = openai_client.responses.create(model="demo", input=items, tools=[tool], max_output_tokens=4)
    assert after.status in ("completed", "incomplete")
