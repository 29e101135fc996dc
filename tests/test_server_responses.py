"""Responses that continue others: what is kept of them, for whom, and how much."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from asking import ok
from running_server import Server, running

from pyllama_long.engine import EngineConfig
from pyllama_long.server.settings import Settings

KEYS = ("key-of-one", "key-of-two")


TOOL: Any = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def server(demo_model: str) -> Iterator[Server]:
    config = EngineConfig(demo_model, n_threads=1, n_ctx=1024, n_parallel=4, precision="f32")
    with running(config, Settings(model_name="demo", api_keys=KEYS, keep_responses=100_000)) as found:
        yield found


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client(headers={"Authorization": f"Bearer {KEYS[0]}"}) as found:
        yield found
    assert not server.faults, server.faults[0]


def client_of(server: Server, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60)


def text_of(response: Any) -> dict[str, Any]:
    (message,) = [one for one in response.output if one.type == "message"]
    return {"role": "assistant", "content": message.content[0].text}


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_goes_on_from_another(server: Server, stream: bool) -> None:
    with client_of(server, KEYS[0]) as client:
        options: Any = {"model": "demo", "max_output_tokens": 8, "temperature": 0}

        def said(text: str, **more: Any) -> Any:
            found: Any = client.responses.create(input=text, stream=stream, **options, **more)
            return list(found)[-1].response if stream else found

        first = said("My name is Ann.", instructions="Be brief.")
        second = said("I have a cat.", previous_response_id=first.id)
        third = said("Who am I?", previous_response_id=second.id, instructions="Be kind.")
        assert first.store and third.previous_response_id == second.id
        whole: Any = [
            {"role": "user", "content": "My name is Ann."},
            text_of(first),
            {"role": "user", "content": "I have a cat."},
            text_of(second),
            {"role": "user", "content": "Who am I?"},
        ]
        same = client.responses.create(input=whole, instructions="Be kind.", store=False, **options)
        assert same.usage and third.usage.input_tokens == same.usage.input_tokens
        assert text_of(third) == text_of(same) and same.store is False
        shown = client.responses.retrieve(third.id)
        assert shown.output == third.output and shown.id == third.id and shown.status == third.status
        client.responses.delete(second.id)
        for lost in (second.id, third.id, same.id, "resp_no"):
            with pytest.raises(openai.NotFoundError):
                client.responses.retrieve(lost)
            with pytest.raises(openai.BadRequestError) as caught:
                said("x", previous_response_id=lost)
            assert (caught.value.code, caught.value.param) == (
                "previous_response_not_found",
                "previous_response_id",
            )
        assert client.responses.retrieve(first.id).id == first.id
        with pytest.raises(openai.NotFoundError):
            client.responses.delete(third.id)


def test_items_are_referred_to(client: httpx.Client) -> None:
    body = {"input": "Go", "tools": [TOOL], "tool_choice": "required", "max_output_tokens": 60}
    said = ok(client.post("/v1/responses", json=body))["output"]
    call = next(one for one in said if one["type"] == "function_call")
    user, result = {"role": "user", "content": "Go"}, {"type": "function_call_output", "output": "nothing"}
    result["call_id"] = call["call_id"]
    prompts = []
    typed = [{"type": "item_reference", "id": one["id"]} for one in said]
    for shown in (said, typed, [{"id": one["id"]} for one in said]):
        more = {"input": [user, *shown, result], "tools": [TOOL], "max_output_tokens": 2}
        found = client.post("/v1/responses", json=more)
        prompts.append(ok(found)["usage"]["input_tokens"])
        assert "X-Ignored-Fields" not in found.headers
    assert len(set(prompts)) == 1
    again = {"input": "And?", "previous_response_id": found.json()["id"], "max_output_tokens": 2}
    assert (
        ok(client.post("/v1/responses", json=again))["usage"]["input_tokens"] > 20
    )  # references were resolved
    for lost in ({"type": "item_reference", "id": "msg_1"}, {"id": "msg_1"}, {"type": "item_reference"}):
        refused = client.post("/v1/responses", json={"input": [user, lost]})
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["param"]) == (404, "item_not_found", "input"), lost


def test_keys_do_not_see_each_others(server: Server) -> None:
    with client_of(server, KEYS[0]) as one, client_of(server, KEYS[1]) as two:
        first = one.responses.create(model="demo", input="Secret", max_output_tokens=2)
        with pytest.raises(openai.NotFoundError):
            two.responses.retrieve(first.id)
        with pytest.raises(openai.NotFoundError):
            two.responses.delete(first.id)
        with pytest.raises(openai.BadRequestError):
            two.responses.create(model="demo", input="x", previous_response_id=first.id)
        reference: Any = [{"type": "item_reference", "id": first.output[0].id}]
        with pytest.raises(openai.NotFoundError):
            two.responses.create(model="demo", input=reference)
        assert one.responses.retrieve(first.id).id == first.id


def _long(n: int) -> dict[str, str]:
    return {str(i): "y" * 2000 for i in range(n)}


def test_the_oldest_make_room(server: Server, client: httpx.Client) -> None:
    def made(**more: Any) -> dict[str, Any]:
        body = {"input": "Hello", "max_output_tokens": 2, "metadata": _long(10)}
        found: dict[str, Any] = ok(client.post("/v1/responses", json=body | more))
        return found

    first, second = made()["id"], made()["id"]
    assert made(previous_response_id=first)["store"]
    for _ in range(3):
        last = made()
    assert (
        client.get(f"/v1/responses/{second}").status_code == 404
    )  # the oldest, since the first was continued
    assert client.get(f"/v1/responses/{last['id']}").json() == last
    assert server.app.state.state.responses.n_bytes <= 100_000
    large = made(metadata=_long(50))
    assert large["store"] is False and client.get(f"/v1/responses/{large['id']}").status_code == 404
