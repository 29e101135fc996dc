"""OpenAI's own openai_client on completions: several prompts, echo, tokens, suffix."""

from __future__ import annotations

import openai
import pytest
from running_server import Server, events


def test_completions_continue_each_prompt(openai_client: openai.OpenAI) -> None:
    prompts = ["Once upon a time", "The old man"]
    found = openai_client.completions.create(
        model="demo", prompt=prompts, max_tokens=5, temperature=0, n=2, echo=True
    )
    assert [c.index for c in found.choices] == [0, 1, 2, 3]
    assert [c.text[:7] for c in found.choices] == ["Once up"] * 2 + ["The old"] * 2
    assert found.usage is not None and found.usage.completion_tokens == 20


def test_echo_scores_the_prompt(openai_client: openai.OpenAI, server: Server) -> None:
    prompt = "It was the best of times, it was the worst of times"
    found = openai_client.completions.create(
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


def test_completions_take_tokens_and_stream(openai_client: openai.OpenAI, server: Server) -> None:
    tokens = server.engine.tokenize(b"Once upon a time")
    whole = openai_client.completions.create(model="demo", prompt=tokens, max_tokens=6, temperature=0)
    chunks = openai_client.completions.create(
        model="demo", prompt=tokens, max_tokens=6, temperature=0, stream=True
    )
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text


def test_a_suffix_needs_a_model_that_fills(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.completions.create(model="demo", prompt="a", suffix="b", max_tokens=1)
    assert caught.value.param == "suffix" and caught.value.code == "no_fim"
