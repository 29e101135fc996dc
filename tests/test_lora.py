"""LoRA adapters: a model with one gives the logits of merged weights; no file of one ends the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from float_model import write as write_floats

from pyllama_long import LongLlama, cli
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
