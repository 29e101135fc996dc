"""What every route needs from the loaded engine: its model, and what it runs."""

from __future__ import annotations

import openai
import pytest
from asking import ask
from running_server import Server


def test_models(openai_client: openai.OpenAI) -> None:
    assert [model.id for model in openai_client.models.list()] == ["demo"]
    assert openai_client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError) as caught:
        openai_client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_extras_are_refused_unless_they_are_what_runs(openai_client: openai.OpenAI, server: Server) -> None:
    engine = server.engine
    same = {"attention": str(engine.plan), "rope": str(engine.rope)}
    assert ask(openai_client, max_tokens=1, extra_body=same).choices
    for name, other in (("attention", "window(64)"), ("rope", "yarn(4)"), ("attention", "nonsense(")):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(openai_client, extra_body={name: other})
        assert caught.value.param == name
