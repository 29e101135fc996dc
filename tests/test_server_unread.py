"""Fields inside the objects of a request: those that nothing reads are named, those that clients always send are
not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from asking import BODIES, HELLO, ok
from running_server import Server, running

from pyllama_long.engine import EngineConfig
from pyllama_long.server import unread
from pyllama_long.server.schemas.chat import ChatRequest
from pyllama_long.server.state import Loaded
from pyllama_long.server.template import ChatTemplate

HEADER = "X-Ignored-Fields"
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
FUNCTION = {"name": "look", "parameters": {"type": "object", "properties": {"free": {"form": 1}}}}


@pytest.fixture(scope="module")
def server(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = str(tmp_path_factory.mktemp("sessions"))
    config = EngineConfig(
        demo_model, n_threads=1, n_ctx=1024, n_parallel=4, precision="f32", cache_dir=folder
    )
    with running(config) as found:
        yield found


def message(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hello", **more}]}


def block(**more: Any) -> dict[str, Any]:
    return message(content=[{"type": "text", "text": "Hello", **more}])


def item(**more: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": "Hello", **more}]}


SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "foo": 1}, "bar": 1}
CASES: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, message(foo=1), "messages[].foo"),
    (CHAT, message(name="Ann"), "messages[].name"),
    (CHAT, message(audio={"id": "a"}, function_call={"name": "f"}), "messages[].audio, messages[].function_call"),
    (CHAT, block(foo=1), "messages[].content[].foo"),
    (CHAT, {"tools": [{"type": "function", "function": FUNCTION | {"foo": 1}, "strict": True}]}, "tools[].strict"),
    (CHAT, {"tools": [{"type": "function", "function": FUNCTION | {"foo": 1}}]}, "tools[].function.foo"),
    (CHAT, {"response_format": SCHEMA}, "response_format.bar, response_format.json_schema.foo"),
    (CHAT, {"stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
    (
        CHAT,
        {
            "tools": [{"type": "function", "function": FUNCTION}],
            "tool_choice": {"type": "function", "function": {"name": "look", "foo": 1}},
        },
        "tool_choice.function.foo",
    ),
    (CHAT, {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": True}},
     "chat_template_kwargs.enable_thinking, reasoning_effort"),
    (CHAT, {"enable_thinking": True}, "enable_thinking"),
    (RESPONSES, item(foo=1), "input[].foo"),
    (RESPONSES, item(content=[{"type": "input_text", "text": "Hello", "foo": 1}]), "input[].content[].foo"),
    (RESPONSES, {"reasoning": {"effort": "low", "summary": "auto"}}, "reasoning.summary, reasoning.effort"),
    (RESPONSES, {"text": {"verbosity": "low", "format": {"type": "text", "q": 1}}}, "text.verbosity, text.format.q"),
    (RESPONSES, {"tools": [{"type": "function", **FUNCTION, "defer_loading": True}]}, "tools[].defer_loading"),
    (MESSAGES, block(foo=1), "messages[].content[].foo"),
    (MESSAGES, message(foo=1), "messages[].foo"),
    (MESSAGES, {"system": [{"type": "text", "text": "Hi", "foo": 1}]}, "system[].foo"),
    (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.budget_tokens, thinking"),
    (MESSAGES, {"output_config": {"effort": "low", "foo": 1}}, "output_config.foo, output_config.effort"),
    (MESSAGES, {"tools": [{"name": "x", "input_schema": {}, "input_examples": [{}]}]}, "tools[].input_examples"),
    (MESSAGES, {"tools": [{"name": "x", "input_schema": {}}], "tool_choice": {"type": "auto", "foo": 1}},
     "tool_choice.foo"),
    (
        MESSAGES,
        message(content=[{"type": "tool_result", "content": [{"type": "text", "text": "", "q": 1}]}]),
        "messages[].content[].content[].q",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("path", "change", "names"), CASES, ids=[case[2] for case in CASES])
def test_fields_inside_are_named(client: httpx.Client, path: str, change: dict[str, Any], names: str) -> None:
    answer = client.post(path, json=BODIES[path] | change)
    ok(answer)
    found = answer.headers.get(HEADER, "").split(", ")
    assert set(names.split(", ")) <= set(found), found
    unknown = [name for name in found if name not in names.split(", ")]
    assert unknown in ([], ["tools[].function.foo"]), found


def test_names_are_few_and_short(client: httpx.Client) -> None:
    many = {f"x{i}" * 400: 1 for i in range(200)}
    answer = client.post(CHAT, json=BODIES[CHAT] | message(**many))
    ok(answer)
    assert answer.headers[HEADER].count(",") == 32 and answer.headers[HEADER].endswith(", ...")
    assert len(answer.headers[HEADER]) < 32 * 100
    odd = client.post(
        CHAT, json=BODIES[CHAT] | message(**{"": 1, "a\nb": 1, "nöw": 1, "null": None, "no": False})
    )
    assert set(odd.headers[HEADER].split(", ")) == {"messages[].?", "messages[].a?b", "messages[].n?w"}


def test_the_search_is_linear_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "_MAX_LOOKS", 50_000)
    seconds = []
    for n in (5_000, 20_000):
        sent = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 2}] * n}
        request = ChatRequest.model_validate(sent)
        began = time.process_time()
        found = unread.inside(request, sent)
        seconds.append(time.process_time() - began)
        assert found == ([] if 3 * n < 50_000 else ["..."])
    assert seconds[1] < 8 * max(seconds[0], 0.005)
    request = ChatRequest.model_validate(message())
    for value, names in ((1, 33), (None, 1)):  # one more than are shown, or that there are more
        many = message(**{str(i): value for i in range(60_000)})
        assert len(unread.inside(request, many)) == names


def test_many_fields_at_the_top_are_named_or_refused(client: httpx.Client) -> None:
    many = {f"x{i}": None for i in range(10_001)}
    answer = client.post(CHAT, json=BODIES[CHAT] | many)
    ok(answer)
    assert answer.headers[HEADER].count(",") == 32 and answer.headers[HEADER].endswith("x31, ...")
    assert client.post(CHAT, json=BODIES[CHAT] | many | {"min_tokens": 4}).status_code == 400


def test_what_openais_client_sends_back_is_known(server: Server, openai_client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "function": FUNCTION}
    turns: list[Any] = [*HELLO]
    raw = openai_client.chat.completions.with_raw_response
    first = raw.create(
        model="demo",
        messages=turns,
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=60,
    )
    said = first.parse().choices[0].message
    assert said.tool_calls
    turns += [said, {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": "nothing"}]
    again = raw.create(
        model="demo",
        messages=turns,
        tools=[tool],
        max_tokens=2,
        stream_options={"include_usage": True},
        stream=True,
    )
    dumped = [*turns[:1], said.model_dump(), turns[2]]
    third = raw.create(model="demo", messages=dumped, tools=[tool], max_tokens=2)
    responses = openai_client.responses.with_raw_response
    function: Any = {"type": "function", **FUNCTION, "strict": True}
    fourth = responses.create(
        model="demo", input="Go", tools=[function], tool_choice="required", max_output_tokens=60
    )
    output = fourth.parse().output
    call = next(one for one in output if one.type == "function_call")
    items: Any = [
        {"role": "user", "content": "Go"},
        *(one.model_dump() for one in output),
        {"type": "function_call_output", "call_id": call.call_id, "output": "nothing", "status": "completed"},
    ]
    fifth = responses.create(model="demo", input=items, tools=[function], max_output_tokens=2, store=False)
    output = responses.create(model="demo", input="Hello", max_output_tokens=4, top_logprobs=1).parse().output
    text: Any = [{"role": "user", "content": "Go"}, *(one.model_dump() for one in output), items[0]]
    sixth = responses.create(model="demo", input=text, max_output_tokens=2)
    for answer in (first, again, third, fourth, fifth, sixth):
        assert HEADER not in answer.headers, answer.headers[HEADER]
    assert list(again.parse())[-1].usage is not None


def test_what_anthropics_client_sends_back_is_known(server: Server) -> None:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        kept: Any = {"type": "ephemeral"}
        tool: Any = {
            "name": "look",
            "input_schema": {"type": "object"},
            "cache_control": kept,
            "strict": True,
        }
        system: Any = [{"type": "text", "text": "Be brief.", "cache_control": kept}]
        turns: list[Any] = [*HELLO]
        raw = client.messages.with_raw_response
        first = raw.create(
            model="demo",
            max_tokens=60,
            messages=turns,
            system=system,
            tools=[tool],
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
        )
        (call,) = first.parse().content
        assert call.type == "tool_use"
        result: Any = {
            "type": "tool_result",
            "tool_use_id": call.id,
            "content": "no",
            "is_error": False,
            "cache_control": kept,
        }
        thought: Any = {"type": "thinking", "thinking": "hm", "signature": "abc"}
        more: Any = [
            *turns,
            {"role": "assistant", "content": [thought, call]},
            {"role": "user", "content": [result]},
        ]
        second = raw.create(model="demo", max_tokens=2, messages=more, tools=[tool], system=system)
    for answer in (first, second):
        assert HEADER not in answer.headers, answer.headers[HEADER]
    assert not server.faults


def test_a_failed_tool_is_told(client: httpx.Client) -> None:
    def counted(**more: Any) -> int:
        result = {"type": "tool_result", "tool_use_id": "a", "content": "no such file", **more}
        body = {"messages": [{"role": "user", "content": [result]}]}
        return int(ok(client.post("/v1/messages/count_tokens", json=body))["input_tokens"])

    assert counted(is_error=True) == counted(content="Error: no such file") > counted(is_error=False)
    assert counted(is_error=True, content="error 7") == counted(content="error 7")


def test_a_refusal_in_the_history_is_kept(client: httpx.Client) -> None:
    turns = [*HELLO, {"role": "assistant", "content": None, "refusal": "I will not."}, *HELLO]
    assert "I will not." in ok(client.post("/apply-template", json={"messages": turns}))["prompt"]


# ---- the routes that make prompts only ----------------------------------------------------------------------

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if tools %}"
    "{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)


@pytest.fixture
def thinking(server: Server) -> Iterator[None]:
    """The server's model has a template with a switch."""
    loaded: Loaded = server.app.state.state.loaded
    old = loaded.template
    loaded.template = ChatTemplate(CHATML, "", "<|im_end|>", ["<|im_start|>", "<|im_end|>"])
    yield
    loaded.template = old


@pytest.mark.usefixtures("thinking")
def test_prompts_are_read_as_in_a_chat(client: httpx.Client) -> None:
    off: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
    tools = [{"type": "function", "function": {"name": name}} for name in ("left", "right")]
    same: dict[str, Any]
    for same in (
        off,
        {"enable_thinking": False},
        {"reasoning_effort": "none"},
        {"chat_template_kwargs": {"thinking": False}},
    ):
        answer = client.post("/apply-template", json={"messages": HELLO} | same)
        assert ok(answer)["prompt"].endswith("<think></think>") and HEADER not in answer.headers, same
    chosen: dict[str, Any] = {
        "messages": HELLO,
        "tools": [*tools, {"type": "web_search"}],
        "tool_choice": tools[1],
    }
    answer = client.post(
        "/apply-template", json=chosen | {"max_tokens": 3, "temperature": 0, "stop": "x", "foo": 1}
    )
    prompt = ok(answer)["prompt"]
    assert "right" in prompt and "left" not in prompt and "web_search" not in prompt
    named = {"max_tokens", "temperature", "stop", "foo", "tools.2.web_search"}
    assert set(answer.headers[HEADER].split(", ")) == named
    for none in ({"tool_choice": "none"}, {"tools": [], "tool_choice": "auto"}):
        assert "left" not in ok(client.post("/apply-template", json=chosen | none))["prompt"]
    refused = client.post("/apply-template", json={"messages": HELLO, "chat_template": "x"})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "chat_template"
    change: dict[str, Any]
    for path, change in (
        (CHAT, {"reasoning_effort": "none"}),
        (RESPONSES, {"reasoning": {"effort": "none"}}),
        (MESSAGES, {"thinking": {"type": "disabled"}}),
    ):
        plain, less = client.post(path, json=BODIES[path]), client.post(path, json=BODIES[path] | change)
        assert HEADER not in less.headers, less.headers
        key = "prompt_tokens" if path == CHAT else "input_tokens"
        used = [ok(one)["usage"] for one in (plain, less)]
        total = [one[key] + one.get("cache_read_input_tokens", 0) for one in used]
        assert total[1] > total[0], path


@pytest.mark.usefixtures("thinking")
def test_counts_are_of_the_same_prompt(client: httpx.Client) -> None:
    base: dict[str, Any] = {"messages": HELLO}
    count = "/v1/messages/count_tokens"
    plain = ok(client.post(count, json=base))["input_tokens"]
    off = client.post(
        count,
        json=base | {"thinking": {"type": "disabled"}, "max_tokens": 5, "stop_sequences": ["a"], "top_k": 1},
    )
    assert ok(off)["input_tokens"] > plain
    assert set(off.headers[HEADER].split(", ")) == {"max_tokens", "stop_sequences", "top_k"}
    tool = {"name": "look", "input_schema": {"type": "object"}}
    shown = ok(client.post(count, json=base | {"tools": [tool]}))["input_tokens"]
    hidden = ok(client.post(count, json=base | {"tools": [tool], "tool_choice": {"type": "none"}}))[
        "input_tokens"
    ]
    assert shown > plain == hidden


@pytest.mark.usefixtures("thinking")
def test_sessions_are_of_the_same_prompt(client: httpx.Client) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("left", "right")]
    talk: dict[str, Any] = {
        "messages": HELLO,
        "tools": [*tools, {"type": "web_search"}],
        "tool_choice": tools[1],
    }
    talk |= {"chat_template_kwargs": {"enable_thinking": False}}
    n_prompt = ok(client.post(CHAT, json=talk | {"max_tokens": 60}))["usage"]["prompt_tokens"]
    saved = client.post("/v1/sessions", json=talk | {"name": "a", "temperature": 0, "foo": 1})
    assert ok(saved)["tokens"] == n_prompt
    assert set(saved.headers[HEADER].split(", ")) == {"temperature", "foo", "tools.2.web_search"}
    fewer = ok(client.post("/v1/sessions", json={"name": "b", "messages": HELLO}))
    assert fewer["tokens"] < n_prompt
    wrong = client.post("/v1/sessions", json=talk | {"name": "c", "chat_template_kwargs": {"nothing": 1}})
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "chat_template_kwargs"
