"""OpenAI's own client on a real server: chats, completions, responses, embeddings, models and errors."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import openai
import pytest
from engines import NO_END
from pydantic import BaseModel
from running_server import Server, events

QUESTION = "The pass key for apricot is 40913. What is the pass key for apricot?"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 2]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def client(openai_client: openai.OpenAI) -> openai.OpenAI:
    return openai_client


def ask(client: openai.OpenAI, content: str = QUESTION, **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 24, "model": "demo", **options}
    create: Any = client.chat.completions.create
    return create(messages=[{"role": "user", "content": content}], **options)


# ---- chat ----------------------------------------------------------------------------------------------------


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


# ---- structured output ---------------------------------------------------------------------------------------


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


# ---- tools ---------------------------------------------------------------------------------------------------


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


# ---- completions ---------------------------------------------------------------------------------------------


def test_completions_continue_each_prompt(client: openai.OpenAI) -> None:
    prompts = ["Once upon a time", "The old man"]
    found = client.completions.create(
        model="demo", prompt=prompts, max_tokens=5, temperature=0, n=2, echo=True
    )
    assert [c.index for c in found.choices] == [0, 1, 2, 3]
    assert [c.text[:7] for c in found.choices] == ["Once up"] * 2 + ["The old"] * 2
    assert found.usage is not None and found.usage.completion_tokens == 20


def test_echo_scores_the_prompt(client: openai.OpenAI, server: Server) -> None:
    prompt = "It was the best of times, it was the worst of times"
    found = client.completions.create(
        model="demo", prompt=prompt, max_tokens=0, logprobs=2, echo=True, temperature=0
    ).choices[0]
    assert found.text == prompt and found.logprobs is not None
    logprobs = found.logprobs
    assert logprobs.tokens is not None and logprobs.token_logprobs is not None
    assert len(logprobs.tokens) == len(server.engine.tokenize(prompt.encode()))
    assert logprobs.token_logprobs[0] is None and all(p < 0 for p in logprobs.token_logprobs[1:])
    assert "".join(logprobs.tokens) == prompt
    assert logprobs.text_offset is not None and logprobs.text_offset[-1] == prompt.rindex(" times")


@pytest.mark.parametrize("stream", [False, True])
def test_offsets_count_characters_of_several_tokens(server: Server, stream: bool) -> None:
    prompt = "🙂🙂 hello 漢字 ab"
    body = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 2, "stream": stream}
    with server.client() as raw:
        found = raw.post("/v1/completions", json=body)
    whole = [choice for e in (events(found) if stream else [found.json()]) for choice in e["choices"]]
    listed = [choice["logprobs"] for choice in whole if choice["logprobs"] is not None]
    tokens = [token for one in listed for token in one["tokens"]]
    offsets = [offset for one in listed for offset in one["text_offset"]]
    assert offsets[0] == 0 and offsets == sorted(offsets)
    assert offsets[tokens.index(" hell")] == 2 and offsets[tokens.index(" ab")] == prompt.index(" ab")
    n_prompt = len(server.engine.tokenize(prompt.encode()))
    assert offsets[n_prompt] == len(prompt)


def test_completions_take_tokens_and_stream(client: openai.OpenAI, server: Server) -> None:
    tokens = server.engine.tokenize(b"Once upon a time")
    whole = client.completions.create(model="demo", prompt=tokens, max_tokens=6, temperature=0)
    chunks = client.completions.create(model="demo", prompt=tokens, max_tokens=6, temperature=0, stream=True)
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text


def test_a_suffix_needs_a_model_that_fills(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="demo", prompt="a", suffix="b", max_tokens=1)
    assert caught.value.param == "suffix" and caught.value.code == "no_fim"


# ---- responses -----------------------------------------------------------------------------------------------


def test_responses_answer(client: openai.OpenAI) -> None:
    found = client.responses.create(model="demo", input=QUESTION, temperature=0, max_output_tokens=24)
    assert "40913" in found.output_text and found.status == "completed"
    assert found.usage is not None and found.usage.input_tokens == 36


def test_responses_stream_events_in_order(client: openai.OpenAI) -> None:
    items: Any = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]
    stream = client.responses.create(
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


def test_responses_call_functions(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", **WEATHER["function"], "strict": False}
    found = client.responses.create(
        model="demo", input="Weather?", tools=[tool], tool_choice="required", parallel_tool_calls=False
    )
    (call,) = found.output
    assert call.type == "function_call" and json.loads(call.arguments)["days"] in (1, 2)
    items: Any = [
        {"role": "user", "content": "Weather?"},
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]
    after = client.responses.create(model="demo", input=items, tools=[tool], max_output_tokens=4)
    assert after.status in ("completed", "incomplete")


# ---- the rest ------------------------------------------------------------------------------------------------


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_overflow_is_the_error_that_clients_know(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "word " * 3000)
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
        ask(client, "word " * 3000, stream=True)
    assert streamed.value.code == "context_length_exceeded"


def test_a_stream_that_is_left_is_cancelled(client: openai.OpenAI, server: Server) -> None:
    before = server.engine.stats().cancelled
    stream = ask(client, "Tell me a long story.", stream=True, max_tokens=1900, logit_bias=NO_END)
    next(stream)
    stream.close()
    server.cancelled(before + 1)


def test_progress_is_told_on_request(server: Server) -> None:
    body = {
        "messages": [{"role": "user", "content": "A new word " * 400}],
        "stream": True,
        "max_tokens": 1,
        "return_progress": True,
    }
    with server.client() as raw:
        found = events(raw.post("/v1/chat/completions", json=body))
    progress = [e["prompt_progress"] for e in found if "prompt_progress" in e]
    assert progress[-1]["processed"] == progress[-1]["total"] > 1000
    assert [p["processed"] for p in progress] == sorted(p["processed"] for p in progress)
    timings = [e["timings"] for e in found if "timings" in e]
    assert len(timings) == 1 and timings[0]["keys_read_share"] > 0


def test_extras_are_refused_unless_they_are_what_runs(client: openai.OpenAI, server: Server) -> None:
    engine = server.engine
    same = {"attention": str(engine.plan), "rope": str(engine.rope)}
    assert ask(client, max_tokens=1, extra_body=same).choices
    for name, other in (("attention", "window(64)"), ("rope", "yarn(4)"), ("attention", "nonsense(")):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, extra_body={name: other})
        assert caught.value.param == name
