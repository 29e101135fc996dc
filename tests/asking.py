"""Requests that tests of servers send, and how they look at what comes back."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
from engines import NO_END
from running_server import Server

from pyllama_long import filler
from pyllama_long.server.schemas.conversation import Message, as_input

CHAT = "/v1/chat/completions"
HELLO_CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}


@contextmanager
def surviving(server: Server) -> Iterator[httpx.Client]:
    """A client of a server that must answer as before when the test is over."""
    with server.client() as found:
        yield found
        assert found.post(CHAT, json=HELLO_CHAT).status_code == 200
    assert not server.faults, server.faults[0]


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert all(error[key] is None or isinstance(error[key], str) for key in ("type", "param", "code"))
    assert error["message"] and error["type"]
    return error


PROMPT = "It was a long day, and the old man sat down by the fire to rest."
STREAMS = ("/completion", "/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses")


def prose(n: int) -> str:
    """n sentences."""
    sentences = filler.sentences()
    return " ".join(sentences[i % len(sentences)] for i in range(n))


def body(path: str, text: str, stream: bool, n: int = 5000) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    found: dict[str, dict[str, Any]] = {
        "/completion": {"prompt": text, "n_predict": n, "logit_bias": NO_END},
        "/v1/completions": {"prompt": text, "max_tokens": n, "logit_bias": NO_END},
        "/v1/chat/completions": {"messages": messages, "max_tokens": n, "logit_bias": NO_END},
        "/v1/messages": {"messages": messages, "max_tokens": n},
        "/v1/responses": {"input": text, "max_output_tokens": n},
    }
    return found[path] | {"stream": stream} | ({} if path == "/completion" else {"model": "demo"})


class Asked(threading.Thread):
    """A request and its outcome; status 0: it did not reach the server before it stopped accepting."""

    def __init__(self, url: str, path: str, content: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.url, self.path, self.content = url, path, content
        self.status, self.text = 0, ""
        self._data = json.dumps(content).encode()
        self.start()

    def run(self) -> None:
        try:
            headers = {"Content-Type": "application/json"}
            found = httpx.post(self.url + self.path, content=self._data, headers=headers, timeout=60)
            self.status, self.text = found.status_code, found.text
        except httpx.HTTPError as error:
            self.text = repr(error)

    def check(self) -> None:
        """It was ended early, and says so in the way of its API."""
        self.join(30)
        shown = (self.path, self.status, self.text[-400:])
        if not self.content.get("stream"):
            error = json.loads(self.text)["error"] if self.status else {}
            assert self.status == 503 and error.get("code") == "shutting_down", shown
            assert (json.loads(self.text).get("type") == "error") == self.path.startswith("/v1/messages"), (
                shown
            )
            return
        assert self.status == 200, shown
        events = self.text.rstrip("\n").split("\n\n")
        if self.path == "/v1/messages":
            assert events[-1].startswith("event: error\ndata: "), shown
            assert json.loads(events[-1].partition("data: ")[2])["error"]["code"] == "shutting_down"
            return
        assert events[-1] == "data: [DONE]", shown
        if self.path == "/v1/responses":
            assert events[-2].startswith("event: response.failed\ndata: "), shown
            response = json.loads(events[-2].partition("data: ")[2])["response"]
            assert response["status"] == "failed" and response["error"]["code"] == "shutting_down"
        else:
            assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "shutting_down", shown


def gauge(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics", timeout=20).text.splitlines()
    return float(next(line for line in lines if line.startswith(f"pyllama_long_{name} ")).split()[1])


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


WORDS = {"prompt": "Once upon a time", "stream": True, "logit_bias": NO_END}


def stream(url: str, n: int, into: list[str]) -> threading.Thread:
    def read() -> None:
        try:
            into.append(httpx.post(f"{url}/completion", json=WORDS | {"n_predict": n}, timeout=60).text)
        except httpx.HTTPError as error:
            into.append(type(error).__name__)

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def until_it_runs(url: str) -> None:
    end = time.monotonic() + 20
    while "pyllama_long_requests_active 1.0" not in httpx.get(f"{url}/metrics", timeout=20).text:
        assert time.monotonic() < end
        time.sleep(0.05)


HELLO = [{"role": "user", "content": "Hello there"}]


def ok(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


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


def ask(client: openai.OpenAI, content: str = QUESTION, **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 24, "model": "demo", **options}
    create: Any = client.chat.completions.create
    return create(messages=[{"role": "user", "content": content}], **options)


BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO, "max_tokens": 2},
    "/v1/completions": {"prompt": "Hello", "max_tokens": 2},
    "/completion": {"prompt": "Hello", "n_predict": 2},
    "/v1/messages": {"messages": HELLO, "max_tokens": 2},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 2},
}


def user(content: str) -> list[Message]:
    return as_input([{"role": "user", "content": content}])
