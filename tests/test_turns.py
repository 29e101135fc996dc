"""A LongLlama in several threads, in callbacks of itself, and after a fork: calls wait or say why they cannot."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pyllama_long import LongLlama
from pyllama_long.errors import Cancelled

PROMPT = "Captain Ahab stood upon the deck, and the crew"


@pytest.fixture
def llm(demo_model: str) -> Iterator[LongLlama]:
    model = LongLlama(demo_model, n_ctx=2048, n_batch=32, precision="f32")
    yield model
    model.close()


def answer(model: LongLlama, prompt: Any = PROMPT, n: int = 8) -> str:
    return str(model(prompt, max_tokens=n, temperature=0)["choices"][0]["text"])


def test_calls_of_other_threads_wait(llm: LongLlama) -> None:
    prompts = [f"{PROMPT} of the {word}" for word in "ship sea man house king night song light".split()]
    expected = [answer(llm, prompt) for prompt in prompts]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            assert list(threads.map(lambda prompt: answer(llm, prompt), prompts)) == expected
            states = list(threads.map(lambda i: (llm.save_state(), llm.explain(), llm.scores)[0], range(8)))
            assert len(states) == 8


def test_anything_from_anywhere(llm: LongLlama) -> None:
    """Every outcome is an answer or an error of Python."""
    state, ended = llm.save_state(), time.monotonic() + 3
    calls: list[Callable[[], Any]] = [
        lambda: answer(llm),
        lambda: list(llm(PROMPT, max_tokens=8, stream=True)),
        lambda: [token for token, _ in zip(llm.generate([300, 301]), range(5), strict=False)],
        lambda: (llm.reset(), llm.eval([300, 301]), llm.sample()),
        lambda: llm.load_state(state),
        lambda: llm.create_chat_completion([{"role": "user", "content": "hello"}], max_tokens=4),
        lambda: (llm.scores, llm.eval_logits, llm.n_tokens, llm.tokenize(b"the sea")),
        lambda: llm.cancel(),
    ]
    outcomes: list[str] = []

    def work(call: Callable[[], Any]) -> None:
        while time.monotonic() < ended:
            try:
                call()
                outcomes.append("done")
            except (RuntimeError, ValueError) as error:
                outcomes.append(str(error))

    with ThreadPoolExecutor(len(calls)) as threads:
        list(threads.map(work, calls))
    known = ("done", "this stream has ended", "there are no logits", "cancelled")
    assert all(outcome.startswith(known) for outcome in outcomes), set(outcomes)
    assert outcomes.count("done") > 20
    assert answer(llm) == answer(llm)


def test_a_stream_that_is_half_read_locks_nobody_out(llm: LongLlama) -> None:
    expected = answer(llm)
    stream = llm(PROMPT, max_tokens=8, stream=True)
    next(stream)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(answer, llm).result(timeout=60) == expected
    with pytest.raises(RuntimeError, match="another call on the same LongLlama has begun"):
        list(stream)


def test_closing_ends_what_runs_in_other_threads(demo_model: str) -> None:
    for stream in (False, True):
        model, began = LongLlama(demo_model, n_ctx=16384, n_batch=32), threading.Event()
        model.progress = lambda done, total, began=began: began.set()

        def work(model: LongLlama = model, stream: bool = stream) -> None:
            list(model([300] * 16000, max_tokens=300, stream=stream))

        with ThreadPoolExecutor(1) as threads:
            running = threads.submit(work)
            assert began.wait(60)
            begun = time.monotonic()
            model.close()
            assert time.monotonic() - begun < 10
            with pytest.raises(RuntimeError, match="this LongLlama is closed"):
                running.result(timeout=60)


CALLBACKS: list[tuple[str, Callable[[LongLlama], Any]]] = [
    ("eval", lambda m: m.eval([300])),
    ("create_completion", lambda m: m("the sea", max_tokens=1)),
    ("generate", lambda m: next(m.generate([300]))),
    ("reset", lambda m: m.reset()),
    ("n_tokens", lambda m: setattr(m, "n_tokens", 0)),
    ("load_state", lambda m: m.load_state(m.save_state())),
    ("close", lambda m: m.close()),
]


@pytest.mark.parametrize(("name", "call"), CALLBACKS, ids=[name for name, _ in CALLBACKS])
def test_callbacks_cannot_call(llm: LongLlama, name: str, call: Callable[[LongLlama], Any]) -> None:
    def processor(ids: Any, scores: Any) -> Any:
        call(llm)
        return scores

    def criteria(ids: Any, scores: Any) -> bool:
        call(llm)
        return False

    expected = answer(llm)
    ways: list[dict[str, Any]] = [{"logits_processor": processor}, {"stopping_criteria": criteria}]
    for options in ways:
        with pytest.raises(RuntimeError, match="a callback has called the LongLlama that called it"):
            llm(PROMPT, max_tokens=4, **options)
    llm.progress = lambda done, total: call(llm)
    with pytest.raises(RuntimeError, match="a callback has called the LongLlama that called it"):
        llm.create_completion(PROMPT + " of", max_tokens=4)
    llm.progress = None
    assert answer(llm) == expected


def test_callbacks_may_read(llm: LongLlama) -> None:
    seen: list[Any] = []

    def processor(ids: Any, scores: Any) -> Any:
        seen.append(
            (llm.n_tokens, llm.detokenize(ids.tolist()), llm.tokenize(b"sea"), len(llm.scores), llm.explain())
        )
        return scores

    expected = answer(llm)
    found = llm(PROMPT, max_tokens=8, temperature=0, logits_processor=processor)["choices"][0]["text"]
    assert found == expected and len(seen) == 8 and seen[0][3] == 1


def test_cancelling_from_another_thread(llm: LongLlama) -> None:
    threading.Timer(0.2, llm.cancel).start()
    llm.progress = lambda done, total: time.sleep(0.02)
    with pytest.raises(Cancelled):
        llm.eval([300] * 2000)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork(llm: LongLlama) -> None:
    expected = answer(llm)
    stream = llm(PROMPT, max_tokens=8, stream=True)
    next(stream)
    child = os.fork()
    if child == 0:
        wrong = 100
        try:
            wrong = 0
            calls = [call for name, call in CALLBACKS if name != "close"]
            calls += [lambda m: next(stream), lambda m: m.scores, lambda m: m.embed("a")]
            for call in calls:
                try:
                    call(llm)
                    wrong += 1
                except RuntimeError as error:
                    wrong += "before the process forked" not in str(error)
            wrong += llm.tokenize(b"the sea") == []
            llm.close()
        finally:
            os._exit(wrong)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    assert done and os.waitstatus_to_exitcode(status) == 0
    assert answer(llm) == expected
