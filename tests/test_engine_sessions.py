"""Named sessions: saved, restored, listed and deleted, and what they take on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from engines import GREEDY, answer, ask, prose, stored

from pyllama_long.engine import Engine, EngineConfig, Request


@pytest.fixture
def config(demo_model: str, tmp_path: Path) -> EngineConfig:
    return stored(demo_model, tmp_path)


def test_sessions(config: EngineConfig) -> None:
    config = replace(config, cache_ram=0, cache_disk=0)
    with Engine(config) as engine:
        prompt = prose(engine, 400)
        handle = engine.submit(Request(prompt, 8, GREEDY, salt="key"))
        expected = answer(handle)
        info = engine.sessions.save(handle, "../../my session", salt="ignored for a handle")
        assert (info.name, info.n_tokens) == ("../../my session", 407)
        assert [found.name for found in engine.sessions.list("key")] == ["../../my session"]
        assert engine.sessions.list() == []
    folder = Path(str(config.cache_dir)) / "sessions"
    assert [path.parent for path in folder.iterdir()] == [folder]
    with Engine(config) as engine:
        assert ask(engine, prompt, salt="key").cached == 0
    with Engine(config) as engine:
        assert engine.sessions.restore("../../my session", "key") == engine.sessions.list("key")[0]
        assert ask(engine, prompt, salt="another").cached < 10
        again = ask(engine, prompt, salt="key")
        assert (again.cached, again.ids) == (391, expected.ids)
        for name in ("none", "../../my session"):
            with pytest.raises(KeyError):
                engine.sessions.restore(name, "wrong key")
        engine.sessions.delete("../../my session", "key")
        assert engine.sessions.list("key") == []
        with pytest.raises(KeyError):
            engine.sessions.delete("../../my session", "key")
        assert ask(engine, prose(engine, 300, 1), salt="key").reason == "length"


def test_sessions_that_cannot_be(config: EngineConfig, demo_model: str) -> None:
    with Engine(config) as engine:
        prompt = prose(engine, 200)
        with pytest.raises(ValueError, match="nothing of this text"):
            engine.sessions.save(prompt, "name")
        for name in ("", "a" * 257, "a\nb", "\0"):
            with pytest.raises(ValueError, match="name"):
                engine.sessions.save(prompt, name)
        ask(engine, prompt)
        info = engine.sessions.save([*prompt, *ask(engine, prompt).ids], "name")
        assert info.n_tokens == 207
        assert engine.sessions.save(prompt[:150], "part").n_tokens == 150
        engine.sessions.delete("part")
        assert engine.stats().cells_used == 207
    with Engine(replace(config, kv_type="q8_0")) as engine:
        assert not engine.sessions.list()[0].usable
        with pytest.raises(ValueError, match="under another model"):
            engine.sessions.restore("name")
    (path,) = (Path(str(config.cache_dir)) / "sessions").iterdir()
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    path.write_bytes(raw)
    with Engine(config) as engine, pytest.raises(ValueError, match="checksum"):
        engine.sessions.restore("name")
    with Engine(EngineConfig(demo_model)) as engine:
        assert engine.sessions.list() == []
        with pytest.raises(ValueError, match="cache_dir"):
            engine.sessions.save([300], "name")


def test_sessions_of_texts_that_have_left_the_context(config: EngineConfig) -> None:
    config = replace(config, cache_disk=0)
    with Engine(config) as engine:
        prompts = [prose(engine, 400, i) for i in range(4)]
        for prompt in prompts:
            ask(engine, prompt)
        assert engine.stats().stored
        # with the answer, since that is how it is kept
        assert engine.sessions.save(prompts[0], "a").n_tokens == 407
    with Engine(config) as engine:
        engine.sessions.restore("a")
        assert ask(engine, prompts[0]).cached == 391


def test_sessions_count_on_disk(config: EngineConfig) -> None:
    with Engine(replace(config, cache_ram=0)) as engine:
        ask(engine, prose(engine, 400))
        size = engine.sessions.save(prose(engine, 400), "a").n_bytes
    config = replace(config, cache_ram=0, cache_disk=int(2.5 * size))
    with Engine(config) as engine:
        prompt = prose(engine, 400)
        ask(engine, prompt)
        engine.sessions.save(prompt, "b")
        engine.sessions.save(prompt, "b")
        with pytest.raises(OSError, match="delete others"):
            engine.sessions.save(prompt, "c")
        engine.sessions.delete("a")
        engine.sessions.save(prompt, "c")
    assert sum(path.stat().st_size for path in Path(str(config.cache_dir)).rglob("*.*")) <= config.cache_disk
