"""Conversations that do not fit: each way out does what the response says."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from asking import CHAT, wait_until
from running_server import Server, events, running

from pyllama_long.engine import EngineConfig
from pyllama_long.server.overflow import turns
from pyllama_long.server.schemas.conversation import as_input
from pyllama_long.server.settings import Settings

FRUIT = ["apricot", "walnut", "cherry", "quince", "melon", "lemon", "peach", "olive"]


@pytest.fixture(scope="module")
def server(demo_model: str) -> Iterator[Server]:
    config = EngineConfig(demo_model, n_ctx=512, n_parallel=2, n_threads=1, precision="f32")
    with running(config) as found:
        yield found


def conversation(question: str, n: int = 8) -> list[dict[str, Any]]:
    """A system message, n turns of about 100 tokens, and a question."""
    found = [{"role": "system", "content": "You answer questions."}]
    for i in range(n):
        fact = (
            f"The pass key for {FRUIT[i]} is {10101 * (i + 1)}. " + "The old house stood near the river. " * 7
        )
        found += [{"role": "user", "content": fact}, {"role": "assistant", "content": "I see."}]
    return [*found, {"role": "user", "content": question}]


def ask(client: httpx.Client, mode: str | None, **more: Any) -> httpx.Response:
    messages = conversation("What is the pass key for cherry?")
    body = {"messages": messages, "temperature": 0, "max_tokens": 24, **more}
    return client.post("/v1/chat/completions", json=body | ({"overflow": mode} if mode else {}))


def test_by_default_nothing_is_cut(client: httpx.Client) -> None:
    for mode in (None, "error"):
        found = ask(client, mode)
        assert found.status_code == 400 and found.json()["error"]["code"] == "context_length_exceeded"


def test_shift_drops_the_oldest_turns_and_says_so(client: httpx.Client) -> None:
    found = ask(client, "shift").json()
    report = found["overflow"]
    assert report["mode"] == "shift" and report["dropped_messages"] % 2 == 0
    assert 0 < report["dropped_messages"] < 14 and report["dropped_tokens"] > 100
    assert found["usage"]["prompt_tokens"] <= 512 - 24
    # As few as needed: the conversation fits without these messages, and with two more of them it does not.
    messages = conversation("What is the pass key for cherry?")
    n = report["dropped_messages"]
    for dropped, status in ((n, 200), (n - 2, 400)):
        kept = messages[:3] + messages[3 + dropped :]
        body = {"messages": kept, "max_tokens": 24, "temperature": 0}
        again = client.post(
            "/v1/chat/completions", json=body | {"overflow": "shift"} if status == 200 else body
        )
        if status == 200:
            assert again.json()["overflow"] is None if "overflow" in again.json() else True
            assert again.json()["usage"]["prompt_tokens"] == found["usage"]["prompt_tokens"]


def test_what_fits_is_not_touched(client: httpx.Client) -> None:
    body = {"messages": conversation("Hello?", 2), "max_tokens": 2, "overflow": "shift"}
    found = client.post("/v1/chat/completions", json=body).json()
    assert "overflow" not in found


def test_a_stream_tells_it_in_its_first_chunk(client: httpx.Client) -> None:
    found = events(ask(client, "shift", stream=True))
    assert found[0]["overflow"]["dropped_messages"] > 0
    assert all("overflow" not in event for event in found[1:])


def test_a_last_turn_that_is_too_long_is_refused_by_every_mode(client: httpx.Client) -> None:
    for mode in ("shift", "summarize", "retrieve"):
        body = {"messages": [*conversation("x", 2), {"role": "user", "content": "word " * 600}]}
        found = client.post("/v1/chat/completions", json=body | {"overflow": mode})
        assert found.status_code == 400 and found.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("mode", ["shift", "summarize", "retrieve"])
def test_what_cannot_be_shortened_is_sent_where_it_fits(client: httpx.Client, mode: str) -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "word " * 430}], "overflow": mode}
    found = client.post("/v1/chat/completions", json=body | {"temperature": 0})
    assert found.status_code == 200, found.text
    assert 512 * 3 // 4 < found.json()["usage"]["prompt_tokens"] < 512 and "overflow" not in found.json()


@pytest.mark.parametrize("mode", ["shift", "summarize", "retrieve"])
@pytest.mark.parametrize("words", [120, 200, 240, 270, 300, 340])
def test_a_large_last_turn_is_taken_by_every_mode(client: httpx.Client, mode: str, words: int) -> None:
    messages = [*conversation("x")[:-1], {"role": "user", "content": "word " * words}]
    found = client.post("/v1/chat/completions", json={"messages": messages, "overflow": mode})
    assert found.status_code == 200, found.text
    assert found.json()["overflow"]["mode"] == mode and found.json()["overflow"]["dropped_messages"] > 0
    assert found.json()["usage"]["prompt_tokens"] > words + 90


def test_retrieve_brings_back_the_turn_that_is_asked_for(client: httpx.Client) -> None:
    found = ask(client, "retrieve").json()
    report = found["overflow"]
    assert report["mode"] == "retrieve" and report["retrieved_messages"] >= 1
    assert "30303" in found["choices"][0]["message"]["content"]
    shifted = ask(client, "shift").json()["choices"][0]["message"]["content"]
    assert "30303" not in shifted  # it had been dropped


def test_summarize_says_what_it_condensed_to(client: httpx.Client) -> None:
    report = ask(client, "summarize").json()["overflow"]
    assert report["mode"] == "summarize" and report["dropped_messages"] > 0 and report["summary"]


LONG: dict[str, Any] = {"messages": conversation("Hello?", 8) * 60, "overflow": "summarize", "max_tokens": 2}


def test_a_summary_that_nobody_waits_for_is_cancelled(demo_model: str) -> None:
    data = json.dumps(LONG).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    with running(EngineConfig(demo_model, n_ctx=16384, n_threads=1, n_batch=64)) as server:
        host, _, port = server.url.rpartition("/")[2].partition(":")
        with socket.create_connection((host, int(port)), timeout=30) as leaving:
            leaving.sendall(head.encode() + data)
            wait_until(
                lambda: server.engine.stats().prompt_tokens > 0
            )  # the first part, of 8192 tokens, is read
        server.cancelled(1)
        read = server.engine.stats().prompt_tokens
        time.sleep(0.5)
        assert server.engine.stats().prompt_tokens == read < 8192  # no other part was begun


def test_summaries_keep_to_the_limit_of_time(demo_model: str) -> None:
    settings = Settings(model_name="demo", request_timeout_s=0.7)
    config = EngineConfig(demo_model, n_ctx=512, n_threads=1)
    with running(config, settings) as server, server.client() as client:
        begun = time.monotonic()
        found = client.post("/v1/chat/completions", json=LONG)
        assert found.status_code == 408 and found.json()["error"]["code"] == "timeout"
        assert time.monotonic() - begun < 5
        server.quiet()


def test_the_other_apis_tell_it_too(client: httpx.Client) -> None:
    messages = conversation("What is the pass key for cherry?")
    body = {"messages": messages[1:], "max_tokens": 8, "overflow": "shift"}
    assert client.post("/v1/messages", json=body).json()["overflow"]["dropped_messages"] > 0
    answer = {"input": messages, "max_output_tokens": 8, "overflow": "shift"}
    assert client.post("/v1/responses", json=answer).json()["overflow"]["dropped_messages"] > 0


def test_turns_begin_with_users() -> None:
    roles = ["system", "user", "assistant", "tool", "assistant", "user", "user", "assistant"]
    system, found = turns(as_input([{"role": role, "content": "x"} for role in roles]))
    assert len(system) == 1 and [len(turn) for turn in found] == [4, 3]
