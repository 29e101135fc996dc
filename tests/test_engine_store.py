"""Idle sequences outside the context: in memory, on disk, after a restart; damaged files."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engines import GREEDY, answer, ask, files, prose, stored

from pyllama_long.engine import Engine, EngineConfig, Request, Started, loop, seqfile
from pyllama_long.engine.prefix import MIN_PREFILL
from pyllama_long.errors import DecodeError


@pytest.fixture
def config(demo_model: str, tmp_path: Path) -> EngineConfig:
    return stored(demo_model, tmp_path)


def test_texts_come_back_from_memory(config: EngineConfig) -> None:
    with Engine(replace(config, cache_disk=0)) as engine:
        prompts = [prose(engine, 400, i) for i in range(5)]
        first = [ask(engine, prompt) for prompt in prompts]
        stats = engine.stats()
        assert (stats.stored, stats.spilled) == (3, 3)
        assert stats.ram_bytes > 0 == stats.disk_bytes
        for prompt, before in zip(prompts, first, strict=True):
            again = ask(engine, prompt)
            assert again.cached == 391
            assert again.ids == before.ids
        assert engine.stats().restored >= 3
    assert not files(config)


def test_a_part_of_a_stored_text_is_reused(config: EngineConfig) -> None:
    with Engine(replace(config, cache_disk=0)) as engine:
        prompts = [prose(engine, 400, i) for i in range(4)]
        for prompt in prompts:
            ask(engine, prompt)
        branch = [*prompts[0][:250], *prose(engine, 50, 9)]
        got = ask(engine, branch)
        assert 250 <= got.cached <= 252
        assert ask(engine, prompts[0]).cached == 391
        ask(engine, branch[:-1], salt="other key")
        with Engine(replace(config, cache_disk=0)) as other:
            assert ask(other, branch).ids == got.ids


def test_little_memory_keeps_the_latest(config: EngineConfig) -> None:
    with Engine(replace(config, cache_disk=0)) as probe:
        for i in range(4):
            ask(probe, prose(probe, 400, i))
        size = probe.stats().ram_bytes // 2
    with Engine(replace(config, cache_disk=0, cache_ram=size * 2)) as engine:
        prompts = [prose(engine, 400, i) for i in range(6)]
        for prompt in prompts:
            ask(engine, prompt)
        stats = engine.stats()
        assert (stats.stored, stats.spilled) == (2, 4)
        assert stats.ram_bytes <= 2 * size
        assert ask(engine, prompts[0]).cached < 10
        assert ask(engine, prompts[5]).cached == 391


@pytest.mark.parametrize("cache_ram", [0, 1 << 28])
def test_a_restart_finds_them_again(config: EngineConfig, cache_ram: int) -> None:
    config = replace(config, cache_ram=cache_ram)
    with Engine(config) as engine:
        prompts = [prose(engine, 400, i) for i in range(5)]
        first = [ask(engine, prompt, salt="key").ids for prompt in prompts]
    assert len(files(config)) == 5
    assert all(b"key" not in path.read_bytes() for path in files(config))
    with Engine(config) as engine:
        assert engine.stats().stored == 5
        assert ask(engine, prompts[0], salt="another").cached < 10
        for prompt, ids in zip(prompts, first, strict=True):
            again = ask(engine, prompt, salt="key")
            assert again.cached == 391
            assert again.ids == ids


@pytest.mark.parametrize(
    "change",
    [{"attention": "sinks(4)+window(64)"}, {"kv_type": "q8_0"}, {"rope": "yarn(4)"}, {"precision": "auto"}],
)
def test_other_settings_find_nothing(config: EngineConfig, change: dict[str, str]) -> None:
    with Engine(config) as engine:
        prompt = prose(engine, 400)
        ask(engine, prompt)
    with Engine(replace(config, **change)) as engine:  # type: ignore[arg-type]
        assert ask(engine, prompt).cached == 0
    with Engine(config) as engine:
        assert ask(engine, prompt).cached == 391


def test_dynamic_factors_are_kept(config: EngineConfig) -> None:
    config = replace(config, n_ctx=2048, rope="dynamic-yarn", n_batch=256)
    with Engine(config) as engine:
        prompts = [prose(engine, n, n) for n in (300, 900, 1500)]
        first = [ask(engine, prompt).ids for prompt in prompts]
    with Engine(config) as engine:
        for prompt, ids in zip(prompts, first, strict=True):
            again = ask(engine, prompt)
            assert again.cached == len(prompt) - MIN_PREFILL
            assert again.ids == ids


@pytest.mark.parametrize("at", [3, 20, -200, -5, None])
def test_a_damaged_file_is_ignored_and_deleted(
    config: EngineConfig, at: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    with Engine(config) as engine:
        prompt = prose(engine, 400)
        expected = ask(engine, prompt).ids
    (path,) = files(config)
    raw = bytearray(path.read_bytes())
    if at is None:
        del raw[len(raw) // 2 :]
    else:
        raw[at] ^= 0x5A
    path.write_bytes(raw)
    (path.parent / f"{path.name}.0123456789abcdef-4194305.plseq-part").write_bytes(b"x")
    with caplog.at_level(logging.WARNING), Engine(config) as engine:
        again = ask(engine, prompt)
        assert (again.cached, again.ids) == (0, expected)
        assert not path.exists()
        assert not list(path.parent.glob("*part"))
    assert "deleted" in caplog.text


def test_a_sample_of_damaged_files(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "scripts" / "fuzz_seq.py"
    command = [sys.executable, str(script), "--count", "24", "--seed", "11", "--keep", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["files"] == 24


def test_a_copy_that_holds_no_numbers_is_forgotten(config: EngineConfig) -> None:
    """Impossible positions do not stay in the cells either: the next request is answered as before."""
    config = replace(config, cache_ram=0)
    with Engine(config) as engine:
        prompt = prose(engine, 400)
        expected = ask(engine, prompt).ids
    (path,) = files(config)
    whole = path.read_bytes()
    header, ids, state = seqfile.read(path)
    place = len(whole) - 32 - len(state) + 16  # the first cell's position
    assert struct.unpack_from("<i", whole, place) == (0,)
    for at, value in (
        (len(whole) * 9 // 10 // 2 * 2, b"\0\x7e" * 200),
        (place, struct.pack("<i", 2**31 - 1)),
    ):
        raw = bytearray(whole)
        raw[at : at + len(value)] = value
        seqfile.write(path, header, ids, np.frombuffer(bytes(raw[-len(state) - 32 : -32]), np.uint8))
        with Engine(config) as engine:
            if at == place:
                with pytest.raises(DecodeError):
                    ask(engine, prompt)
            assert ask(engine, prompt).ids == expected
            assert ask(engine, prose(engine, 300, 1)).reason == "length"


def test_a_full_disk_is_logged(
    config: EngineConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.WARNING), Engine(replace(config, cache_ram=0)) as engine:
        prompts = [prose(engine, 400, i) for i in range(4)]
        for prompt in prompts:
            assert len(ask(engine, prompt).ids) == 8
        with pytest.raises(OSError, match="No space"):
            engine.sessions.save(prompts[3], "name")
    assert "No space left" in caplog.text
    assert not list(Path(str(config.cache_dir)).rglob("*.*"))


def test_the_disk_has_a_limit(config: EngineConfig) -> None:
    with Engine(replace(config, cache_ram=0)) as engine:
        for i in range(4):
            ask(engine, prose(engine, 400, i))
    size = max(path.stat().st_size for path in files(config))
    config = replace(config, cache_disk=2 * size + 100)
    with Engine(config) as engine:
        assert engine.stats().stored == 2
        for i in range(6):
            ask(engine, prose(engine, 400, 10 + i))
    assert sum(path.stat().st_size for path in files(config)) <= config.cache_disk
    with Engine(config) as engine:
        assert ask(engine, prose(engine, 400, 15)).cached == 391


def test_idle_time_is_used_to_copy_ahead(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_IDLE_S", 0.02)
    with Engine(config) as engine:
        prompts = [prose(engine, 400, i) for i in range(2)]
        for i, prompt in enumerate(prompts):
            ask(engine, prompt)
            begin = time.monotonic()
            while engine.stats().stored == i and time.monotonic() < begin + 10:
                time.sleep(0.01)
            assert engine.stats().stored == i + 1
        assert engine.stats().cells_idle >= 800
        monkeypatch.setattr(engine._context, "state", None)  # nothing is copied again
        monkeypatch.setattr(loop, "_IDLE_S", 100)
        ask(engine, prose(engine, 500, 9))
        assert ask(engine, prompts[0]).cached == 391
        monkeypatch.undo()


def test_a_longer_text_takes_the_place_of_its_beginning(config: EngineConfig) -> None:
    with Engine(replace(config, cache_ram=0)) as engine:
        text = prose(engine, 300)
    for turn in range(3):
        with Engine(replace(config, cache_ram=0)) as engine:
            got = ask(engine, text)
            assert got.cached == (len(text) - 21 if turn else 0)
            text = [*text, *got.ids, *prose(engine, 20, 30 + turn)]
        assert len(files(config)) == 1


def test_odd_entries_of_the_folder_stop_nothing(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are not ours stay, whatever they are; those with our names but other contents are deleted or
    ignored."""
    folder = Path(str(config.cache_dir))
    sessions = folder / "sessions"
    sessions.mkdir(parents=True)
    mine = []
    for place, suffix in ((folder, ".seq"), (sessions, ".session")):
        for k, stem in enumerate(("a", "b" * 32)):
            (place / f"{stem}{suffix}").mkdir()
            os.mkfifo(place / f"{k}{'c' * 31}{suffix}")
            (place / f"{k}{'d' * 31}{suffix}").symlink_to("nowhere")
            with socket.socket(socket.AF_UNIX) as odd:
                monkeypatch.chdir(place)  # such names must not be long
                odd.bind(f"{k}{'e' * 31}{suffix}")
        mine += [place / f"notes{suffix}", place / "film.part", place / "x.12.part"]
    for path in mine:
        path.write_bytes(b"mine")
    deep = b'{"model":' + b"[" * 60_000
    head = b"PLSEQ\x00\x01\n"
    bad = [deep, b"{}", b"[1]", b'{"n_tokens": 1e999}', b'{"factor": NaN}', b"\xff"]
    for i, text in enumerate(bad):
        (folder / f"{i:032x}.seq").write_bytes(head + struct.pack("<I", len(text)) + text)
    with (folder / f"{'f' * 32}.seq").open("wb") as f:
        f.truncate(1 << 42)
    with Engine(config) as engine:
        ask(engine, prose(engine, 100))
        assert engine.sessions.list() == []
        assert engine.sessions.save(prose(engine, 100), "name").n_tokens == 100
    assert all(path.read_bytes() == b"mine" for path in mine)
    assert len(files(config)) == 8 + 1 + 1  # odd ones, notes and the text


_SCRIPT = """
import itertools, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from engines import GREEDY, prose
from pyllama_long.engine import Engine, EngineConfig, Request
config = EngineConfig(
    sys.argv[1], n_ctx=1024, rope="native", precision="f32", cache_ram=0, cache_disk=1 << 28, cache_dir=sys.argv[2]
)
engine = Engine(config)
print("ready", flush=True)
for i in itertools.count():
    handle = engine.submit(Request(prose(engine, 400, i), 8, GREEDY))
    list(handle)
    engine.sessions.save(handle, f"session {i % 3}")
    print("saved", flush=True)
"""


def test_a_killed_process_leaves_whole_files(config: EngineConfig, demo_model: str) -> None:
    command = [sys.executable, "-c", _SCRIPT, demo_model, str(config.cache_dir), str(Path(__file__).parent)]
    for n in (1, 7):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            for _ in range(n):
                assert process.stdout.readline() == "saved\n"
            time.sleep(0.005 * n)
            process.kill()
        with Engine(config) as engine:
            found = engine.sessions.list()
            assert len(found) <= 3
            for info in found:
                assert engine.sessions.restore(info.name).n_tokens == 407
            assert engine.stats().stored >= len(found) > 0
            for i in range(3):
                prompt = prose(engine, 400, i)
                got = ask(engine, prompt)
                with Engine(replace(config, cache_disk=0, cache_dir=None)) as other:
                    assert ask(other, prompt).ids == got.ids
        assert not list(Path(str(config.cache_dir)).rglob("*part"))


_LEAVES = """
import sys
from pyllama_long.engine import Engine, EngineConfig, Request
engine = Engine(EngineConfig(sys.argv[1], cache_disk=1 << 28, cache_dir=sys.argv[2]))
list(engine.submit(Request([300] * 100, 8)))
"""


def test_a_process_that_leaves_keeps_its_texts(config: EngineConfig, demo_model: str) -> None:
    command = [sys.executable, "-c", _LEAVES, demo_model, str(config.cache_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(files(config)) == 1


def test_broken_keys_of_a_file_are_dropped_and_the_prompt_is_read_again(config: EngineConfig) -> None:
    config = replace(config, kv_type="f32")
    with Engine(config) as engine:
        prompt = prose(engine, 400)
        expected = ask(engine, prompt).ids
    (path,) = files(config)
    spoil(path)
    other = [*prompt[:300], *prompt[:100]]
    with Engine(config) as engine:
        both = [engine.submit(Request(ids, 8, GREEDY)) for ids in (prompt, other)]
        first, second = answer(both[0]), answer(both[1])
        assert (first.ids, first.usage.n_cached) == (expected, 0)
        assert [event.n_cached for event in first.events if isinstance(event, Started)] == [391, 0]
        assert second.reason in ("stop", "length")
        assert not path.exists()
        again = ask(engine, prompt)
        assert (again.ids, again.cached) == (expected, 391)
        assert engine.stats().failed == 0


def spoil(path: Path) -> None:
    """Writes NaN over some keys of a saved sequence, with a checksum that fits."""
    header, ids, data = seqfile.read(path)
    begin = len(data) // 64 * 4  # within the keys of the first layer
    data[begin : begin + 1024].view(np.float32)[:] = np.nan
    path.unlink()
    seqfile.write(path, header, ids, data)
