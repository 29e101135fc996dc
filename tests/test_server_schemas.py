"""Complaints about requests do not cost more than the requests."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pyllama_long.server.schemas.chat import ChatRequest
from pyllama_long.server.schemas.common import Body
from pyllama_long.server.schemas.completions import CompletionRequest
from pyllama_long.server.schemas.messages import MessagesRequest
from pyllama_long.server.schemas.responses import ResponsesRequest


@pytest.mark.parametrize(
    ("request_type", "body"),
    [
        (ChatRequest, {"messages": [1] * 5000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [1] * 5000}]}),
        (
            ChatRequest,
            {"messages": [{"role": "user", "content": ""}], "logit_bias": {str(i): "" for i in range(5000)}},
        ),
        (CompletionRequest, {"prompt": [None] * 5000}),
        (CompletionRequest, {"prompt": [[None] * 5000]}),
        (MessagesRequest, {"max_tokens": 1, "messages": [{"role": "user", "content": [{}] * 5000}]}),
        (
            MessagesRequest,
            {"max_tokens": 1, "messages": [{"role": "user", "content": ""}], "system": [1] * 5000},
        ),
        (ResponsesRequest, {"input": [{"role": "user", "content": [1] * 5000}]}),
        (ResponsesRequest, {"input": "", "metadata": {str(i): 1 for i in range(5000)}}),
    ],
)
def test_complaints_about_a_body_are_few(request_type: type[Body], body: dict[str, Any]) -> None:
    """A million of them took half a minute, in which nobody was answered."""
    with pytest.raises(ValidationError) as complaints:
        request_type.model_validate(body)
    assert len(complaints.value.errors()) < 16
