"""LangChain on both: ChatOpenAI on a real server, ChatLlamaCpp on LongLlama."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import llama_cpp
import pytest
from langchain_community.chat_models import ChatLlamaCpp
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field, SecretStr
from running_server import Server

from pyllama_long import LongLlama

QUESTION = "The pass key for apricot is 40913. What is the pass key for apricot?"


class Weather(BaseModel):
    """The weather of a city"""

    city: Literal["Rome", "Oslo"]
    days: Literal[1, 2] = Field(description="how many days")


@pytest.fixture
def chat(server: Server) -> Iterator[ChatOpenAI]:
    yield ChatOpenAI(
        base_url=f"{server.url}/v1",
        api_key=SecretStr("none"),
        model="demo",
        temperature=0,
        max_completion_tokens=200,
        max_retries=0,
        timeout=60,
    )
    server.quiet()
    assert not server.faults, server.faults[0]


def test_chat_openai_asks_and_streams(chat: ChatOpenAI) -> None:
    whole = chat.invoke([SystemMessage("You are a helpful assistant."), HumanMessage(QUESTION)])
    assert "40913" in str(whole.content)
    assert whole.usage_metadata and whole.usage_metadata["output_tokens"] > 5
    chunks = list(chat.stream(QUESTION))
    assert "40913" in "".join(str(chunk.content) for chunk in chunks) and len(chunks) > 5


def test_chat_openai_runs_async_and_in_batches(chat: ChatOpenAI) -> None:
    asked = [f"The pass key for walnut is {n}. What is the pass key for walnut?" for n in (30571, 88123)]
    answers = asyncio.run(chat.abatch(list(asked)))
    assert ["30571" in str(answers[0].content), "88123" in str(answers[1].content)] == [True, True]


def test_chat_openai_calls_tools(chat: ChatOpenAI) -> None:
    forced = chat.bind_tools([Weather], tool_choice="Weather")
    first = forced.invoke("What is the weather in Rome?")
    assert isinstance(first, AIMessage) and [call["name"] for call in first.tool_calls] == ["Weather"]
    Weather.model_validate(first.tool_calls[0]["args"])
    result = ToolMessage("It rains.", tool_call_id=first.tool_calls[0]["id"])
    assert chat.invoke([HumanMessage("What is the weather in Rome?"), first, result]).content


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_chat_openai_fills_a_structure(
    chat: ChatOpenAI, method: Literal["json_schema", "function_calling"]
) -> None:
    found = chat.with_structured_output(Weather, method=method).invoke("Rome, two days")
    assert isinstance(found, Weather)


def test_chat_openai_speaks_responses(chat: ChatOpenAI) -> None:
    speaker = chat.model_copy(update={"use_responses_api": True})
    assert "40913" in speaker.invoke(QUESTION).text


def test_embeddings_are_of_the_models_width(server: Server) -> None:
    options: Any = {"base_url": f"{server.url}/v1", "api_key": SecretStr("none")}
    embeddings = OpenAIEmbeddings(
        **options,
        model="demo",
        check_embedding_ctx_length=False,  # which would count tokens with OpenAI's tokenizer
    )
    one, two = embeddings.embed_documents(["Hello", "there"])
    assert len(one) == len(two) == 256 and one != two


@pytest.fixture(scope="module")
def local(demo_model: str) -> Iterator[Any]:
    """LangChain creates llama_cpp.Llama; only that name has to change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp, "Llama", LongLlama)
        found: Any = ChatLlamaCpp(
            model_path=demo_model,
            n_ctx=4096,
            n_batch=512,
            temperature=0,
            max_tokens=24,
            repeat_penalty=1.0,
            verbose=False,
            model_kwargs={"attention": "skim"},
        )
    yield found
    found.client.close()


def test_chat_llama_cpp_runs_on_longllama(local: Any) -> None:
    assert isinstance(local.client, LongLlama) and "window(508) | tail: exact" in str(local.client.plan)
    assert "40913" in local.invoke(QUESTION).content
    assert "40913" in "".join(chunk.content for chunk in local.stream(QUESTION))


def test_chat_llama_cpp_finds_what_stands_far_back(local: Any) -> None:
    text = "The old house stood near the river. " * 300
    question = f"The pass key for apricot is 40913. {text}\nWhat is the pass key for apricot?"
    assert len(local.client.tokenize(question.encode())) > 4 * 512
    assert "40913" in local.invoke(question).content


def test_chat_llama_cpp_calls_tools(local: Any) -> None:
    choice = {"type": "function", "function": {"name": "Weather"}}
    said = local.bind_tools([Weather], tool_choice=choice).invoke("What is the weather in Rome?")
    Weather.model_validate(said.tool_calls[0]["args"])
