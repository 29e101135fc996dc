"""Tools that take one text: in chats and in responses, forced and in the history."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from asking import BODIES, HELLO, ok
from running_server import Server, events, running

from pyllama_long.engine import EngineConfig

LARK = {"syntax": "lark", "definition": 'start: "*** Begin Patch"'}


REGEX = {"syntax": "regex", "definition": r"[a-c]{2,5}\.py"}


CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


@pytest.fixture(scope="module")
def server(demo_model: str) -> Iterator[Server]:
    config = EngineConfig(demo_model, n_threads=1, n_ctx=1024, n_parallel=4, precision="f32")
    with running(config) as found:
        yield found


def chat_tool(grammar: dict[str, str] | None = None, name: str = "patch") -> Any:
    form = {} if grammar is None else {"format": {"type": "grammar", "grammar": grammar}}
    return {"type": "custom", "custom": {"name": name, "description": "Changes a file", **form}}


def response_tool(grammar: dict[str, str] | None = None, name: str = "patch") -> Any:
    form = {} if grammar is None else {"format": {"type": "grammar", **grammar}}
    return {"type": "custom", "name": name, "description": "Changes a file", **form}


def test_a_chat_calls_a_custom_tool(openai_client: openai.OpenAI) -> None:
    options: Any = {
        "model": "demo",
        "tools": [chat_tool(REGEX)],
        "parallel_tool_calls": False,
        "max_tokens": 80,
    }
    for choice in ("required", {"type": "custom", "custom": {"name": "patch"}}):
        more: Any = options | {"messages": HELLO, "tool_choice": choice}
        found = openai_client.chat.completions.create(**more).choices[0]
        assert found.finish_reason == "tool_calls" and found.message.tool_calls
        (call,) = found.message.tool_calls
        assert call.type == "custom" and call.custom.name == "patch"
        assert re.fullmatch(REGEX["definition"], call.custom.input)
    turns: Any = [*HELLO, found.message, {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    after = openai_client.chat.completions.create(**(options | {"messages": turns, "max_tokens": 2}))
    assert after.choices[0].message.content is not None


def test_custom_tools_are_among_those_allowed(client: httpx.Client) -> None:
    tools = [response_tool(REGEX, name) for name in ("left", "right")]
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "right"}]}
    body = {"input": "Go", "tools": tools, "tool_choice": allowed, "max_output_tokens": 80}
    found = ok(client.post(RESPONSES, json=body))["output"]
    assert {one["name"] for one in found if one["type"] == "custom_tool_call"} == {"right"}
    shown = [chat_tool(REGEX, name) for name in ("left", "right")]
    listed = {
        "mode": "required",
        "tools": [{"type": "custom", "custom": {"name": "left"}}, {"type": "web_search"}],
    }
    choice = {"type": "allowed_tools", "allowed_tools": listed}
    chat = {"messages": HELLO, "tools": shown, "tool_choice": choice, "max_tokens": 80}
    (answer,) = ok(client.post(CHAT, json=chat))["choices"]
    assert {call["custom"]["name"] for call in answer["message"]["tool_calls"]} == {"left"}


def test_a_streamed_chat_calls_a_custom_tool(client: httpx.Client) -> None:
    body = {"messages": HELLO, "tools": [chat_tool(REGEX)], "tool_choice": "required", "max_tokens": 80}
    found = events(client.post(CHAT, json=body | {"stream": True, "parallel_tool_calls": False}))
    deltas = [d for e in found for c in e["choices"] for d in c["delta"].get("tool_calls", ())]
    assert (
        deltas[0]["type"] == "custom"
        and deltas[0]["custom"] == {"name": "patch", "input": ""}
        and deltas[0]["id"]
    )
    assert re.fullmatch(REGEX["definition"], "".join(d["custom"].get("input", "") for d in deltas))
    assert not any("function" in d for d in deltas)


def test_a_response_calls_a_custom_tool(openai_client: openai.OpenAI) -> None:
    options: Any = {
        "model": "demo",
        "input": "Go",
        "tools": [response_tool(REGEX)],
        "parallel_tool_calls": False,
    }
    options["tool_choice"] = {"type": "custom", "name": "patch"}
    found = openai_client.responses.create(**options)
    (call,) = found.output
    assert call.type == "custom_tool_call" and call.name == "patch"
    assert re.fullmatch(REGEX["definition"], call.input)
    assert found.tools[0].type == "custom" and found.tools[0].name == "patch"
    streamed = list(openai_client.responses.create(**options, stream=True))
    kinds = [event.type for event in streamed]
    at = kinds.index("response.output_item.added")
    assert kinds[at + 1 : at + 4] == [
        "response.custom_tool_call_input.delta",
        "response.custom_tool_call_input.done",
        "response.output_item.done",
    ]
    delta, done, item = streamed[at + 1 : at + 4]
    assert re.fullmatch(REGEX["definition"], done.input) and delta.delta == done.input == item.item.input
    assert streamed[at].item.input == "" and item.item.id == delta.item_id
    output = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "done"}
    items = [{"role": "user", "content": "Go"}, call.model_dump(exclude_none=True), output]
    again = openai_client.responses.with_raw_response.create(
        model="demo", input=items, tools=options["tools"], max_output_tokens=2
    )
    assert "X-Ignored-Fields" not in again.headers


def test_a_grammar_that_cannot_bind_is_told(client: httpx.Client) -> None:
    answer = client.post(CHAT, json={"messages": HELLO, "tools": [chat_tool(LARK)], "max_tokens": 2})
    assert ok(answer)["ignored"] == ["tools.0.custom.format"]
    assert answer.headers["X-Ignored-Fields"] == "tools.0.custom.format"
    answer = client.post(
        RESPONSES, json={"input": "Go", "tools": [response_tool(LARK)], "max_output_tokens": 2}
    )
    assert ok(answer)["ignored"] == ["tools.0.format"]
    prompt = ok(client.post("/apply-template", json={"messages": HELLO, "tools": [chat_tool(LARK)]}))[
        "prompt"
    ]
    assert json.dumps(LARK["definition"])[1:-1] in prompt and "Changes a file" in prompt
    broken = {"type": "custom", "name": "x", "format": {"type": "grammar", "syntax": "lark"}}
    refused = client.post(RESPONSES, json={"input": "Go", "tools": [broken]})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "tools.0.format"


def test_histories_show_the_texts(client: httpx.Client) -> None:
    call = {"id": "a", "type": "custom", "custom": {"name": "patch", "input": 'say "hi"\n'}}
    turns = [
        *HELLO,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "ok"},
    ]
    found = ok(client.post("/apply-template", json={"messages": turns, "tools": [chat_tool()]}))["prompt"]
    function = {"name": "patch", "arguments": json.dumps({"input": 'say "hi"\n'})}
    turns[1] = {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": function}]}
    assert (
        ok(client.post("/apply-template", json={"messages": turns, "tools": [chat_tool()]}))["prompt"]
        == found
    )
    assert '"input"' in found and "hi" in found


def test_chats_leave_out_tools_that_others_run(client: httpx.Client) -> None:
    function = {"type": "function", "function": {"name": "look"}}
    others: list[Any] = [
        {"type": "web_search"},
        {"type": "mcp", "server_url": "x"},
        {"type": "web_search_20250305"},
    ]
    body = {"messages": HELLO, "max_tokens": 2, "tools": [*others, function]}
    answer = client.post(CHAT, json=body)
    names = [f"tools.{i}.{one['type']}" for i, one in enumerate(others)]
    assert ok(answer)["ignored"] == names and answer.headers["X-Ignored-Fields"] == ", ".join(names)
    first = events(client.post(CHAT, json=body | {"stream": True}))[0]
    assert first["ignored"] == names
    assert "ignored" not in ok(client.post(CHAT, json=body | {"tools": [function]}))
    alone = ok(client.post(CHAT, json=body | {"tools": others}))
    assert (
        alone["usage"]["prompt_tokens"]
        == ok(client.post(CHAT, json=body | {"tools": []}))["usage"]["prompt_tokens"]
    )
    for choice in ("required", {"type": "function", "function": {"name": "x"}}):
        refused = client.post(CHAT, json=body | {"tools": others, "tool_choice": choice})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "tool_choice"
    twice = client.post(CHAT, json=body | {"tools": [function, chat_tool(name="look")]})
    assert twice.status_code == 400 and "same name" in twice.json()["error"]["message"]


def test_responses_leave_out_tools_that_others_run(client: httpx.Client) -> None:
    function = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
    kinds = "web_search namespace local_shell mcp image_generation code_interpreter file_search apply_patch"
    others = [{"type": kind, "name": "x", "tools": []} for kind in kinds.split()]
    body = BODIES["/v1/responses"] | {"tools": [*others, function]}
    answer = client.post("/v1/responses", json=body)
    found = ok(answer)
    assert found["ignored"] == [f"tools.{i}.{kind}" for i, kind in enumerate(kinds.split())]
    assert [tool["name"] for tool in found["tools"]] == ["look"]
    assert "tools.0.web_search" in answer.headers["X-Ignored-Fields"]
    assert "ignored" not in ok(client.post("/v1/responses", json=body | {"tools": [function]}))
    required = body | {"tools": others, "tool_choice": "required"}
    assert client.post("/v1/responses", json=required).json()["error"]["param"] == "tool_choice"


def test_one_of_the_allowed_tools_is_called(client: httpx.Client) -> None:
    tools = [{"type": "function", "name": name} for name in ("left", "right", "up")]
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "right"}]}
    body = {"input": "Go", "tools": tools, "tool_choice": allowed, "max_output_tokens": 60}
    calls = [
        one for one in ok(client.post("/v1/responses", json=body))["output"] if one["type"] == "function_call"
    ]
    assert calls and {call["name"] for call in calls} == {"right"}
    shown = [{"type": "function", "function": {"name": tool["name"]}} for tool in tools]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": shown[2:]}}
    chat = {"messages": HELLO, "tools": shown, "tool_choice": choice, "max_tokens": 60}
    (answer,) = ok(client.post("/v1/chat/completions", json=chat))["choices"]
    assert {call["function"]["name"] for call in answer["message"]["tool_calls"]} == {"up"}
