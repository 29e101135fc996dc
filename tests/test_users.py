"""A model that one thread closes while others use it: latecomers get an error, and nothing crashes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyllama_long import LongLlama
from pyllama_long.engine import Engine, EngineClosed, EngineConfig
from pyllama_long.users import Users


def closed() -> Exception:
    return RuntimeError("it is closed")


def test_the_last_user_is_waited_for() -> None:
    users, freed, go, inside = Users(closed), threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        with users.use():
            inside.set()
            assert go.wait(10)
            assert not freed.is_set()
            with users.use():  # those who are already using it may go on
                assert not freed.is_set()

    with ThreadPoolExecutor(2) as threads:
        working = threads.submit(work)
        assert inside.wait(10)
        ending = threads.submit(users.end, freed.set)
        assert not freed.wait(0.05)
        with pytest.raises(RuntimeError, match="it is closed"), users.use():
            pass
        go.set()
        working.result(10)
        ending.result(10)
        assert freed.is_set()


def test_who_ends_what_he_uses_frees_when_he_leaves() -> None:
    users, freed = Users(closed), []
    with users.use():
        with users.use():
            users.end(lambda: freed.append(1))
        assert not freed
    assert freed == [1]


def test_after_a_while_the_last_user_frees() -> None:
    users, freed = Users(closed), []
    with users.use(), ThreadPoolExecutor(1) as threads:
        threads.submit(users.end, lambda: freed.append(1), 0.05).result(10)
        assert not freed
        with pytest.raises(RuntimeError, match="it is closed"):
            threads.submit(users.use().__enter__).result(10)
    assert freed == [1]


def test_every_method_beside_close(demo_model: str) -> None:
    program = textwrap.dedent(
        """
        import faulthandler, sys, threading, time
        from pyllama_long import LongLlama

        faulthandler.enable()
        text = b"Captain Ahab stood upon the deck. " * 2000
        calls = {
            "tokenize": lambda m, t: m.tokenize(text),
            "tokenizer": lambda m, t: t.encode("Captain Ahab"),
            "detokenize": lambda m, t: m.detokenize(range(300, 900)),
            "decode": lambda m, t: t.decode(list(range(300, 900))),
            "names": lambda m, t: (m.token_bos(), m.token_eos(), m.token_nl(), m.n_vocab(), m.n_embd()),
            "sizes": lambda m, t: (m.n_ctx(), m.pooling_type(), m.explain(), m.attention_stats()),
            "state": lambda m, t: m.save_state(),
            "scores": lambda m, t: m.scores.sum(),
            "model": lambda m, t: (m._model.metadata(), m._model.end_tokens, m._model.desc(), m._model.size()),
            "vocabulary": lambda m, t: [m._model.token_get_text(i) for i in range(300, 600)],
            "eval": lambda m, t: (m.reset(), m.eval(range(300, 340))),
            "complete": lambda m, t: m("Captain", max_tokens=4, grammar=None),
            "stream": lambda m, t: list(m("Captain", max_tokens=4, stream=True)),
            "chat": lambda m, t: m.create_chat_completion([{"role": "user", "content": "Hi"}], max_tokens=2),
            "tail": lambda m, t: m.set_tail(None),
        }
        known = ("this LongLlama is closed", "this stream has ended", "there are no logits")

        def hammer(name, call, model, tokenizer, outcomes):
            while True:
                try:
                    call(model, tokenizer)
                    outcomes[name] = outcomes.get(name, 0) + 1
                except Exception as error:
                    if not isinstance(error, (RuntimeError, ValueError)) or not str(error).startswith(known):
                        print(name, repr(error))
                        return
                    if "is closed" in str(error):
                        return

        for i in range(2):
            model, outcomes = LongLlama(sys.argv[1], n_ctx=512, n_threads=1), {}
            threads = [
                threading.Thread(target=hammer, args=(*pair, model, model.tokenizer(), outcomes))
                for pair in calls.items()
            ]
            for thread in threads:
                thread.start()
            time.sleep(0.2)
            model.close()
            for thread in threads:
                thread.join(20)
                assert not thread.is_alive()
            print(i, len(outcomes), flush=True)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program, demo_model], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1"], lines
    assert all(int(line.split()[1]) > 8 for line in lines), lines


def test_a_model_outlives_its_last_user_only(demo_model: str) -> None:
    model = LongLlama(demo_model, n_ctx=128)
    inner, tokenizer = model._model, model.tokenizer()
    with inner.using():
        closing = threading.Thread(target=model.close)
        closing.start()
        closing.join(0.1)
        assert closing.is_alive()
        assert inner.n_vocab() == 8192 and inner.detokenize([300])
    closing.join(10)
    assert not closing.is_alive()
    calls: list[Callable[[], object]] = [
        lambda: tokenizer.encode("a"),
        inner.n_vocab,
        inner.metadata,
        model.n_ctx,
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="this LongLlama is closed"):
            call()


def test_an_engine_waits_for_its_users(demo_model: str) -> None:
    engine = Engine(EngineConfig(demo_model, n_ctx=512))
    with engine.using():
        closing = threading.Thread(target=engine.close)
        closing.start()
        closing.join(0.2)
        assert closing.is_alive() and engine.model.n_vocab() == 8192
    closing.join(10)
    assert not closing.is_alive()
    calls: list[Callable[[], object]] = [
        lambda: engine.tokenize(b"a"),
        lambda: engine.detokenize([300]),
        lambda: engine.token_text(300),
        lambda: engine.end_tokens,
        lambda: engine.sessions.save([300], "a"),
    ]
    for call in calls:
        with pytest.raises((EngineClosed, ValueError)):
            call()
    assert engine.stats().cells_total == 512 and engine.n_ctx == 512 and engine.explain()
