"""What is chosen for a model when it is opened, and how often its file and a prompt are read for that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from pyllama_long import LongLlama, cli, gguf_reader, keywords, opened
from pyllama_long.engine import Engine, EngineConfig
from pyllama_long.model import Model
from pyllama_long.sequence import TokenSequence

PROMPT = "The grass is green. " * 200  # longer than the embedded model's trained length
ONCE = {"read": 1, "tokenized": 1, "admitted": 1}


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often a header is read, the prompt is tokenized and a text is admitted."""
    found: Counter[str] = Counter()

    def counted(owner: Any, name: str, what: str, counts: Callable[..., bool]) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            found[what] += counts(*args)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    counted(gguf_reader.Reader, "metadata", "read", lambda *_: True)
    counted(Model, "tokenize", "tokenized", lambda _model, text, *_: text == PROMPT.encode())
    counted(TokenSequence, "admit", "admitted", lambda *_: True)
    yield found


@pytest.mark.parametrize("more", [[], ["--ctx", "2048"]], ids=" ".join)
def test_complete_reads_a_file_once_and_a_prompt_once(counts: Counter[str], more: list[str]) -> None:
    assert cli.run(["complete", PROMPT, "--max-tokens", "2", "--temp", "0", *more]) == 0
    assert counts == ONCE


@pytest.mark.parametrize("logprobs", [None, 1])
def test_a_long_llama_reads_its_file_once_and_a_prompt_once(
    counts: Counter[str], demo_model: str, logprobs: int | None
) -> None:
    with closing(LongLlama(demo_model, n_ctx=2048)) as llm:
        llm.create_completion(PROMPT, max_tokens=2, echo=logprobs is not None, logprobs=logprobs)
    assert counts == ONCE


def test_an_engine_reads_its_file_once(counts: Counter[str], demo_model: str) -> None:
    with Engine(EngineConfig(demo_model, n_ctx=2048, n_threads=1)) as engine:
        engine.tokenize(PROMPT.encode())
    assert counts == {"read": 1, "tokenized": 1}


def test_rope_arguments_that_change_nothing() -> None:
    o = keywords.options({"rope_freq_base": 10000.0, "rope_freq_scale": 1.0})
    assert not opened.scaled_by_caller(o, 10000.0)
    o = keywords.options({"rope_freq_base": 10000.0})
    with pytest.warns(
        UserWarning, match="rope_freq_base=10000 is ignored: the model was trained with 500000"
    ):
        assert not opened.scaled_by_caller(o, 500000.0)
    assert o.rope_freq_base == 0.0


@pytest.mark.parametrize("given", [{"rope_freq_scale": 0.5}, {"rope_freq_base": 2e4}, {"yarn_orig_ctx": 512}])
def test_rope_arguments_that_scale(demo_model: str, given: dict[str, Any]) -> None:
    assert opened.scaled_by_caller(keywords.options(given), 10000.0)
    model = LongLlama(demo_model, n_ctx=1024, **given)
    assert str(model.rope) == "native"
    assert "llama_cpp's own arguments scale" in model.explain()
    model.close()


@pytest.mark.parametrize("make", [LongLlama, lambda path, **given: Engine(EngineConfig(path, **given))])
def test_what_upstreams_attention_cannot_run_is_refused(demo_model: str, make: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="its own precision, not f32"):
        make(demo_model, n_ctx=512, attention="upstream", precision="f32")
    with pytest.raises(ValueError, match="cannot run the RoPE policy yarn"):
        make(demo_model, n_ctx=512, attention="upstream", rope="yarn(4)")
