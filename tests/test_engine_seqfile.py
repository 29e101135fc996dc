"""The file of a kept sequence: whole or refused, whatever is done to it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from engines import ask, prose, stored
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllama_long.engine import Engine, EngineConfig, seqfile
from pyllama_long.engine.seqfile import Damaged, Header

HEADER = Header("m" * 64, "s" * 32, 2.0, 5, 1000, 1e9, "näme")
IDS, STATE = np.arange(5, dtype=np.int32), np.arange(1000, dtype=np.uint32).astype(np.uint8)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seqfile") / "a.seq"
    assert seqfile.write(path, HEADER, IDS, STATE) == path.stat().st_size
    return path


def test_a_file_reads_back(written: Path) -> None:
    header, ids, state = seqfile.read(written)
    assert header == HEADER
    assert np.array_equal(ids, IDS)
    assert np.array_equal(state, STATE)
    assert seqfile.peek(written)[0] == HEADER


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_no_change_of_a_file_is_read(written: Path, data: st.DataObject) -> None:
    raw = bytearray(written.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "more", "zeros"]))
    at = data.draw(st.integers(0, len(raw) - 1))
    if kind == "flip":
        raw[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del raw[at:]
    elif kind == "more":
        raw += bytes(at + 1)
    else:
        raw[at] = 0 if raw[at] else 1
    path = written.with_name("changed.seq")
    path.write_bytes(raw)
    with pytest.raises(Damaged):
        seqfile.read(path)


@pytest.fixture
def config(demo_model: str, tmp_path: Path) -> EngineConfig:
    return stored(demo_model, tmp_path)


def test_saves_at_the_same_time_leave_one_whole_file(config: EngineConfig) -> None:
    with Engine(config) as engine:
        prompt = prose(engine, 400)
        ask(engine, prompt)
        with ThreadPoolExecutor(8) as pool:
            sizes = list(
                pool.map(lambda i: engine.sessions.save(prompt[: 200 + i], "one").n_tokens, range(40))
            )
        assert sizes == [200 + i for i in range(40)]
        assert engine.sessions.restore("one").n_tokens in sizes
    assert not list(Path(str(config.cache_dir)).rglob("*part"))
    path = Path(str(config.cache_dir)) / "together.seq"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: seqfile.write(path, HEADER, IDS, STATE), range(64)))
    assert seqfile.read(path)[0] == HEADER
