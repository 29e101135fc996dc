"""litellm on a real server, as an OpenAI-compatible and as an Anthropic one."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from asking import QUESTION
from running_server import Server, running

from pyllama_long.engine import EngineConfig

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else importing it asks the network for prices
import litellm
from litellm.exceptions import ContextWindowExceededError

pytestmark = pytest.mark.filterwarnings("ignore")  # litellm's own, with each new pydantic others
MESSAGES = [{"role": "user", "content": QUESTION}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def server(demo_model: str) -> Iterator[Server]:
    config = EngineConfig(demo_model, n_threads=1, n_ctx=1024, n_parallel=4, embedding=True, precision="f32")
    with running(config) as found:
        yield found


@pytest.fixture
def how(server: Server) -> Iterator[dict[str, Any]]:
    yield {
        "model": "hosted_vllm/demo",
        "api_base": f"{server.url}/v1",
        "api_key": "none",
        "temperature": 0,
        "timeout": 60,
        "max_retries": 0,
        "max_tokens": 60,
    }
    server.quiet()
    assert not server.faults, server.faults[0]


@pytest.mark.parametrize("model", ["hosted_vllm/demo", "openai/demo"])
def test_a_completion(how: dict[str, Any], model: str) -> None:
    found: Any = litellm.completion(messages=MESSAGES, **how | {"model": model})
    assert "40913" in found.choices[0].message.content and found.usage.prompt_tokens == 36


def test_a_stream(how: dict[str, Any]) -> None:
    chunks: Any = list(litellm.completion(messages=MESSAGES, stream=True, **how))
    assert "40913" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_several_at_once(how: dict[str, Any]) -> None:
    async def ask() -> list[Any]:
        return await asyncio.gather(*(litellm.acompletion(messages=MESSAGES, **how) for _ in range(6)))

    answers = [found.choices[0].message.content for found in asyncio.run(ask())]
    assert len(set(answers)) == 1 and "40913" in answers[0]


def test_a_tool_call(how: dict[str, Any]) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    found: Any = litellm.completion(messages=MESSAGES, tools=[WEATHER], tool_choice=choice, **how)
    call = found.choices[0].message.tool_calls[0].function
    assert call.name == "weather" and json.loads(call.arguments)["city"] in ("Rome", "Oslo")


def test_a_structure(how: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    found: Any = litellm.completion(messages=MESSAGES, response_format=form, **how)
    assert json.loads(found.choices[0].message.content)["a"] in (1, 2)


def test_text_and_embeddings(how: dict[str, Any]) -> None:
    text: Any = litellm.text_completion(prompt="It was a long day,", **how | {"max_tokens": 5})
    assert text.usage.completion_tokens == 5
    keep = {key: how[key] for key in ("model", "api_base", "api_key")}
    found: Any = litellm.embedding(input=["Hello", "there"], **keep)
    assert [len(one["embedding"]) for one in found.data] == [256, 256]


def test_a_prompt_that_does_not_fit_is_known_as_such(how: dict[str, Any]) -> None:
    long = [{"role": "user", "content": "The old house stood near the river. " * 200}]
    with pytest.raises(ContextWindowExceededError, match="1024"):
        litellm.completion(messages=long, **how)


def test_anthropics_messages(how: dict[str, Any]) -> None:
    base = how["api_base"].removesuffix("/v1")
    found: Any = litellm.completion(messages=MESSAGES, **how | {"model": "anthropic/demo", "api_base": base})
    assert "40913" in found.choices[0].message.content
