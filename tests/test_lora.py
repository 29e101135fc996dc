"""LoRA adapters: a model with one gives the logits of merged weights; no adapter file ends the process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import numpy.typing as npt
import pytest
from engines import GREEDY, alone, answer, assert_same, prose
from float_model import write as write_floats
from serving import serving

from pyllama_long import LongLlama, cli
from pyllama_long.engine import Engine, EngineConfig, Request
from pyllama_long.errors import ModelError

TOKENS = list(range(300, 400))
RANK, ALPHA = 4, 8.0
PARTS = ("blk.0.attn_q", "blk.1.attn_v", "blk.2.ffn_down", "blk.3.attn_output")


def matrices(source: str) -> dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """A [RANK, columns] and B [rows, RANK] by the names of the tensors they are added to."""
    rng, found = np.random.default_rng(0), {}
    for tensor in gguf.GGUFReader(source).tensors:
        if tensor.name.removesuffix(".weight") in PARTS:
            cols, rows = (int(n) for n in tensor.shape)
            a, b = rng.normal(0, cols**-0.5, (RANK, cols)), rng.normal(0, 0.2, (rows, RANK))
            found[tensor.name] = a.astype(np.float32), b.astype(np.float32)
    assert len(found) == len(PARTS)
    return found


def write(path: Path, tensors: dict[str, Any], **keys: Any) -> Path:
    """keys: of the file, in place of the right ones; None leaves one out."""
    writer = gguf.GGUFWriter(path, "llama" if keys.get("architecture") is None else keys.pop("architecture"))
    values = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": ALPHA, **keys}
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    for name, (a, b) in tensors.items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(path: str | Path, **options: Any) -> Any:
    model = LongLlama(path, n_ctx=256, precision="f32", **options)
    model.eval(TOKENS)
    found = model.scores[-1]
    model.close()
    return found


@pytest.mark.parametrize("scale", [1.0, 0.5, -1.0, 0.0])
def test_logits_are_those_of_merged_weights(
    float_model: str, demo_model: str, tmp_path: Path, scale: float
) -> None:
    tensors = matrices(demo_model)
    adapter = write(tmp_path / "adapter.gguf", tensors)
    merged = tmp_path / "merged.gguf"
    write_floats(
        demo_model, merged, {name: scale * ALPHA / RANK * (b @ a) for name, (a, b) in tensors.items()}
    )
    got, expected = logits(float_model, lora_path=str(adapter), lora_scale=scale), logits(merged)
    assert np.abs(got - expected).max() < 0.05
    assert (np.abs(got - logits(float_model)).max() > 1) == (scale != 0)


def test_files_that_are_no_adapters(demo_model: str, tmp_path: Path) -> None:
    tensors = matrices(demo_model)
    whole = write(tmp_path / "whole.gguf", tensors).read_bytes()
    (name, (a, b)), *_ = tensors.items()
    cases = {
        "of another type": [
            write(tmp_path / "1.gguf", tensors, **{"general.type": "model"}),
            write(tmp_path / "2.gguf", tensors, **{"adapter.type": 3}),
            write(tmp_path / "3.gguf", tensors, **{"adapter.lora.alpha": "8"}),
            write(tmp_path / "4.gguf", {name: (a.astype(np.int32), b)}),
            Path(demo_model),
        ],
    }
    others = [
        write(tmp_path / "5.gguf", tensors, architecture="qwen2"),
        write(tmp_path / "6.gguf", tensors, **{"adapter.type": "dora"}),
        write(tmp_path / "7.gguf", {name: (a[:, :32], b)}),
        write(tmp_path / "8.gguf", {name: (a, b[:, :2])}),
        write(tmp_path / "9.gguf", {"blk.99.attn_q.weight": (a, b)}),
        tmp_path / "none.gguf",
        tmp_path,
    ]
    for share in (0.0, 0.01, 0.5, 0.99):
        others.append(tmp_path / f"cut{share}.gguf")
        others[-1].write_bytes(whole[: int(share * len(whole))])
    for path in [*cases["of another type"], *others]:
        with pytest.raises(ModelError, match=f"{path.name}"):
            LongLlama(demo_model, n_ctx=64, lora_path=str(path))
    for scale in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="lora_scale is"):
            LongLlama(demo_model, n_ctx=64, lora_path=str(tmp_path / "whole.gguf"), lora_scale=scale)


def test_the_command_line(demo_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = write(tmp_path / "adapter.gguf", matrices(demo_model))
    prompt, answers = "Captain Ahab stood upon the deck, and the crew", []
    for options in ([], ["--lora", str(adapter)], ["--lora", str(adapter), "--lora-scale", "0"]):
        assert cli.run(["complete", prompt, "--temp", "0", "--max-tokens", "12", *options]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[2] != answers[1]
    assert cli.run(["complete", prompt, "--lora", str(tmp_path / "none.gguf")]) == 1
    assert "none.gguf does not exist" in capsys.readouterr().err


# In the engine and the server.


@pytest.fixture(scope="module")
def adapter(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write(tmp_path_factory.mktemp("lora") / "adapter.gguf", matrices(demo_model)))


def config(model: str, *adapters: tuple[str, float], **options: Any) -> EngineConfig:
    return EngineConfig(model, n_ctx=512, n_threads=1, precision="f32", lora=adapters, **options)


def test_an_engine_answers_as_a_longllama(float_model: str, adapter: str) -> None:
    runs: list[tuple[list[tuple[str, float]], float]] = [
        ([], 0.0),
        ([(adapter, 1.0)], 1.0),
        ([(adapter, 0.25), (adapter, 0.5)], 0.75),
    ]
    for adapters, scale in runs:
        llm = LongLlama(float_model, n_ctx=512, precision="f32", lora_path=adapter, lora_scale=scale)
        prompt = prose(llm, 100)
        expected = alone(llm, prompt, 16)
        with Engine(config(float_model, *adapters)) as engine:
            assert_same(llm, prompt, answer(engine.submit(Request(prompt, 16, GREEDY))).ids, expected)
            assert engine.explain().count("LoRA: ") == len(adapters)
        assert f"LoRA: {adapter}, scale {scale:g}" in llm.explain()
        llm.close()


def test_what_is_cached_belongs_to_the_adapters(demo_model: str, adapter: str, tmp_path: Path) -> None:
    other = str(shutil.copy(adapter, tmp_path / "other.gguf"))
    raw = bytearray(Path(other).read_bytes())
    raw[-10_000:-9_992] = b"\0" * 8
    Path(other).write_bytes(raw)
    kept: dict[str, Any] = {"cache_disk": 1 << 30, "cache_dir": str(tmp_path / "cache")}
    answers: dict[str, list[int]] = {}
    runs: dict[str, list[tuple[str, float]]] = {
        "none": [],
        "one": [(adapter, 1.0)],
        "half": [(adapter, 0.5)],
        "other": [(other, 1.0)],
        "two": [(adapter, 1.0), (other, 1.0)],
    }
    for name, adapters in runs.items():
        with Engine(config(demo_model, *adapters, **kept)) as engine:
            prompt = prose(engine, 200)
            found = answer(engine.submit(Request(prompt, 8, GREEDY)))
            assert found.cached == 0
            answers[name] = found.ids
            engine.sessions.save(prompt, name)
            assert [info.usable for info in engine.sessions.list()] == [
                info.name == name for info in engine.sessions.list()
            ]
    for name, adapters in [*runs.items(), ("none", [(adapter, 0.0)])]:
        with Engine(config(demo_model, *adapters, **kept)) as engine:
            found = answer(engine.submit(Request(prompt, 8, GREEDY)))
            assert found.cached > 100 and found.ids == answers[name]
            assert engine.sessions.restore(name).n_tokens > 100
            with pytest.raises(ValueError, match="was saved under another model"):
                engine.sessions.restore("half" if name == "one" else "one")
    assert answers["none"] != answers["one"]


def test_an_engine_refuses_what_is_no_adapter(demo_model: str, tmp_path: Path) -> None:
    activated = write(tmp_path / "a.gguf", matrices(demo_model), **{"adapter.alora.invocation_tokens": 3})
    with pytest.raises(ModelError, match="activated"):
        Engine(config(demo_model, (str(activated), 1.0)))
    with pytest.raises(ModelError, match=r"none\.gguf"):
        Engine(config(demo_model, (str(tmp_path / "none.gguf"), 1.0)))


def test_a_server_tells_its_adapters(adapter: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving("--ctx", "512", "--lora", adapter, "--lora", f"{adapter}=-0.5") as (_, url):
        found = httpx.get(f"{url}/lora-adapters").json()
        assert found == [{"id": 0, "path": adapter, "scale": 1.0}, {"id": 1, "path": adapter, "scale": -0.5}]
        same = [{"id": 1, "scale": -0.5}, {"id": 0, "scale": 1}]
        assert httpx.post(f"{url}/lora-adapters", json=same).json() == {"success": True}
        for wanted in (same[:1], [], [*same, {"id": 2, "scale": 1}], [{"id": 0, "scale": 2.0}]):
            refused = httpx.post(f"{url}/lora-adapters", json=wanted)
            assert refused.status_code == 400, refused.text
        assert "LoRA: " in httpx.get(f"{url}/props").json()["explain"]
    for text, code, said in (
        (f"{adapter}=much", 2, "'much' is no scale"),
        (f"{adapter}=nan", 2, "'nan' is no scale"),
        ("none.gguf", 1, "none.gguf"),
    ):
        assert cli.run(["serve", "--port", "0", "--lora", text]) == code
        assert said in capsys.readouterr().err
