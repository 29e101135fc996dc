"""Responses' items as a chat."""

from __future__ import annotations

import httpx
from asking import ok


def test_reasoning_comes_back(client: httpx.Client) -> None:
    """With a template that shows it."""
    from pyllama_long.server.response_input import as_chat
    from pyllama_long.server.schemas.responses import InputItem, ResponsesRequest

    items = [
        {"role": "user", "content": "Go"},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}],
        },
        {"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "no"},
        {
            "type": "reasoning",
            "id": "rs_2",
            "summary": [{"type": "summary_text", "text": "oh"}],
            "content": None,
        },
        {"role": "assistant", "content": "Done."},
        {"type": "reasoning", "id": "rs_3", "summary": [], "encrypted_content": "x"},
        {"role": "user", "content": "And?"},
    ]
    request = ResponsesRequest(input=[InputItem.model_validate(item) for item in items])
    assert isinstance(request.input, list)
    made = as_chat(request, request.input).messages
    assert [m.reasoning_content for m in made] == [None, "hm", None, "oh", None]
    assert ok(client.post("/v1/responses", json={"input": items, "max_output_tokens": 2}))["output"]
