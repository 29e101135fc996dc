"""scripts/make_random_gguf.py: files that GGUFReader reads, and that upstream loads with sensible logits."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import make_random_gguf as maker
import numpy as np
import pytest
from random_gguf import weights
from random_gguf.shapes import SCALINGS

KEYS = {
    "context_length": 2048,
    "embedding_length": 64,
    "block_count": 2,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.key_length": 16,
    "attention.value_length": 16,
    "rope.dimension_count": 16,
}
SMALL: dict[str, Any] = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_head_kv": 2, "head_dim": 16, "n_ff": 96}


def keys(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def values(path: Path) -> dict[str, Any]:
    """Every tensor as float32, in the shape that NumPy counts."""
    there = gguf.GGUFReader(path).tensors
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in there}


@pytest.mark.parametrize("arch", maker.ARCHS)
def test_each_architecture_has_its_keys_and_tensors(arch: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    n_layer = 4 if maker.ARCHS[arch].state == "delta" else 2
    heads = {"n_head_kv": 1} if maker.ARCHS[arch].shape.kv_rank else {}
    shape = maker.write(path, arch, type="f32", **{**SMALL, "n_layer": n_layer, **heads})
    kind, there, stored = maker.ARCHS[arch], keys(path), values(path)
    assert there["general.architecture"] == kind.key
    wanted: dict[str, Any] = {
        name: value for name, value in KEYS.items() if not (kind.max_bias and name.startswith("rope"))
    }
    wanted["attention.head_count_kv"] = kind.heads_kv(shape) if kind.state in ("conv", "ssm") else 2
    wanted["block_count"] = n_layer
    if kind.full_heads:
        wanted["attention.head_count_kv"] = kind.heads_kv(shape)
        lengths = ("attention.key_length", "attention.value_length", "rope.dimension_count")
        wanted |= dict.fromkeys(lengths, shape.head_dim_full)
    if shape.kv_rank:
        wanted["attention.head_count_kv"] = 1
        wanted |= {"attention.key_length": 136, "attention.value_length": 128, "rope.dimension_count": 8}
        wanted |= {"attention.key_length_mla": 16, "attention.value_length_mla": 16}
        wanted |= {"attention.kv_lora_rank": 128, "leading_dense_block_count": n_layer}
    assert {name: there[f"{kind.key}.{name}"] for name in wanted} == wanted
    base = there.get(f"{kind.key}.rope.freq_base")
    assert (base is None) if kind.max_bias else base == pytest.approx(shape.rope_base)
    assert len(there["tokenizer.ggml.tokens"]) == shape.n_vocab == stored["token_embd.weight"].shape[0]
    names = {re.sub(r"^blk\.\d+\.", "", name).removesuffix(".weight") for name in stored}
    assert ("output" in names) != shape.tied
    assert ("shortconv.conv" in names) == (kind.state == "conv")
    assert ("ssm_conv1d" in names) == (kind.state in ("ssm", "delta"))
    assert ("ffn_norm" in names) == (kind.state != "ssm" and kind.ffn_norm == "ffn_norm")
    assert ("attn_sinks" in names) == kind.sinks
    assert ("attn_qkv" in names) == (kind.fused or kind.state == "delta") and ("attn_q" in names) != (
        kind.fused or kind.state == "ssm" or shape.kv_rank > 0
    )
    assert ("attn_kv_a_mqa" in names) == ("attn_k_b" in names) == (shape.kv_rank > 0)
    assert ("attn_q.bias" in names) == kind.qkv_bias
    assert ("attn_k_norm" in names) == kind.qk_norm
    assert ("post_ffw_norm" in names) == kind.post_norm
    assert ("ffn_gate_exps" in names) == bool(shape.n_expert)
    assert all(np.isfinite(value).all() for value in stored.values())
    if shape.n_expert:
        assert stored["blk.0.ffn_down_exps.weight"].shape == (8, 64, 96)
        assert there[f"{kind.key}.expert_used_count"] == 2
    if shape.sliding_window:
        pattern = [True, True] if kind.full_heads else shape.sliding_pattern
        assert there[f"{kind.key}.attention.sliding_window_pattern"] == pattern
    assert ("altup_proj" in names) == ("laurel_l" in names) == kind.altup


def test_layers_that_share_keys_have_none(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    maker.write(path, "gemma4", **{**SMALL, "n_layer": 6}, n_shared=3, sliding_pattern=3)
    names = {name for name in values(path) if "attn_k" in name or "attn_v" in name}
    kinds = [(i, part) for i in range(3) for part in ("k", "k_norm", "v") if (i, part) != (2, "v")]
    assert names == {f"blk.{i}.attn_{part}.weight" for i, part in kinds}
    assert keys(path)["gemma4.attention.shared_kv_layers"] == 3


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rope_scalings(scaling: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    maker.write(path, **SMALL, rope_scaling=scaling, rope_factor=8.0)
    there, stored = keys(path), values(path)
    assert there.get("llama.rope.scaling.type") == (scaling if scaling not in ("none", "llama3") else None)
    if scaling in ("linear", "yarn", "longrope"):
        assert there["llama.rope.scaling.original_context_length"] == 2048 // 8
    if scaling == "longrope":
        assert stored["rope_factors_long.weight"][-1] == pytest.approx(8)
        magnitude = math.sqrt(1 + math.log(8) / math.log(256))
        assert there["llama.rope.scaling.attn_factor"] == pytest.approx(magnitude)
    if scaling == "llama3":  # waves within a quarter of the first length are kept, beyond it slowed by s
        wave = 2 * np.pi * 10000 ** (2 * np.arange(8) / 16)
        factors = stored["rope_freqs.weight"]
        assert factors[wave < 256 / 4] == pytest.approx(1)
        assert factors[wave > 256] == pytest.approx(8)


def test_a_seed_gives_the_same_model_in_every_type(tmp_path: Path) -> None:
    exact: dict[str, Any] = {}
    for kind, error in (("f32", 0), ("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 8e-3), ("q4_0", 0.13)):
        path = tmp_path / f"{kind}.gguf"
        maker.write(path, "qwen2", type=kind, seed=3, **SMALL)
        there = values(path)
        exact = exact or there
        for name, value in there.items():
            size = np.abs(exact[name]).max()
            assert np.abs(value - exact[name]).max() <= (error * size if value.ndim > 1 else 0), name
    maker.write(path, "qwen2", seed=4, **SMALL)
    assert np.abs(values(path)["token_embd.weight"] - exact["token_embd.weight"]).max() > 0.1


def test_weights_do_not_depend_on_the_block_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker.write(tmp_path / "a.gguf", **SMALL)
    monkeypatch.setattr(weights, "BLOCK", 1000)
    maker.write(tmp_path / "b.gguf", **SMALL)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    maker.write(tmp_path / "a.gguf", progress=lambda *at: seen.append(at), **SMALL)
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_tokenizer_can_be_copied(tmp_path: Path) -> None:
    maker.write(tmp_path / "a.gguf", n_vocab=300, **SMALL)
    shape = maker.write(tmp_path / "b.gguf", tokenizer_from=tmp_path / "a.gguf", **SMALL)
    assert shape.n_vocab == 300
    a, b = (
        {name: value for name, value in keys(tmp_path / file).items() if name.startswith("tokenizer.")}
        for file in ("a.gguf", "b.gguf")
    )
    assert a == b and len(a) >= 10


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("qwen2.5-0.5b", 494_032_768),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.1-8b", 8_030_261_248),
    ],
)
def test_presets_have_the_size_of_the_model_they_are_named_after(preset: str, parameters: int) -> None:
    arch, numbers = maker.PRESETS[preset]
    kind = maker.ARCHS[arch]
    tensors = weights.tensors(kind, maker.Shape(**numbers).settled(arch))
    assert sum(math.prod(t.shape) for t in tensors if not t.name.startswith("rope")) == parameters


@pytest.mark.parametrize(
    ("arch", "wrong", "said"),
    [
        ("gpt9", {}, "unknown arch 'gpt9'; known: llama"),
        ("llama", {"type": "q5_9"}, "unknown type 'q5_9'"),
        ("llama", {"preset": "x"}, "unknown preset 'x'"),
        ("llama", {"n_layers": 3}, "unknown shape value n_layers"),
        ("llama", {"n_head": 3}, "n_head must be a multiple of n_head_kv"),
        ("llama", {"n_embd": 100}, "multiples of 32"),
        ("llama", {"n_vocab": 100}, "at least 261"),
        ("gemma4", {"n_shared": 2}, "n_layer - n_shared must be a multiple of sliding_pattern"),
        ("llama", {"rope_scaling": "x"}, "one of none, linear"),
        ("qwen2", {"head_dim": 32}, "qwen2 needs head_dim = n_embd / n_head"),
    ],
)
def test_wrong_numbers_are_named(
    arch: str, wrong: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(maker.ShapeError, match=said):
        maker.write(tmp_path / "x.gguf", arch, **wrong)
    assert not (tmp_path / "x.gguf").exists()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.gguf"
    options = ["--arch", "qwen3", "--n-layer", "1", "--n-embd", "64", "--head-dim", "16", "--tied"]
    assert maker.main(["--out", str(path), "--type", "q4_0", *options]) == 0
    assert "1 layers of 64, 4/2 heads of 16, 512 tokens" in capsys.readouterr().out
    assert "output.weight" not in values(path)
    assert maker.main(["--out", str(path), "--n-head", "3"]) == 1
    assert capsys.readouterr().err.startswith("make_random_gguf: error: n_head must")


@pytest.mark.parametrize("like", maker.LIKE)
def test_likes_repeat_a_block_and_fit_into_2_5_gb(
    like: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch, numbers = maker.PRESETS[like]
    shape = dataclasses.replace(maker.ARCHS[arch].shape, **numbers).settled(arch)
    tensors = weights.tensors(maker.ARCHS[arch], shape)
    assert 1e9 < sum(math.prod(t.shape) for t in tensors) * 34 / 32 < 2.6e9
    monkeypatch.setattr(weights, "BLOCK", 64 * 50)
    small: dict[str, Any] = {
        "n_vocab": 300,
        "n_embd": 64,
        "n_ff": 64,
        "n_layer": 1,
        "n_head": 4,
        "n_head_kv": 2,
        "n_rot": 8,
    }
    maker.write(
        tmp_path / "a.gguf", preset=like, **small, head_dim=16, head_dim_full=16, delta_k=2, delta_v=4
    )
    words = values(tmp_path / "a.gguf")["token_embd.weight"].reshape(6, 50, 64)
    assert (words == words[0]).all()


# ---- through upstream --------------------------------------------------------------------------------------

IDS = np.random.default_rng(0).integers(261, 512, 200).tolist()


@pytest.fixture
def load() -> Callable[[Path], Any]:
    """Opens a model with our library and gives its logits [len(IDS), n_vocab] for IDS."""
    pytest.importorskip("pyllama_long._native", reason="needs the built library")
    import llama_cpp

    def logits(path: Path) -> Any:
        model = llama_cpp.Llama(str(path), n_ctx=256, n_batch=256, logits_all=True, verbose=False)
        model.eval(IDS)
        out = np.array(model.scores[: len(IDS)])
        model.close()
        return out

    return logits


@pytest.mark.parametrize("arch", maker.ARCHS)
def test_each_architecture_loads_and_is_not_degenerate(
    arch: str, tmp_path: Path, load: Callable[[Path], Any]
) -> None:
    path = tmp_path / "x.gguf"
    maker.write(path, arch)
    logits = load(path)
    first = logits.argmax(-1)
    assert 2 < logits.std() < 4
    assert len(set(first.tolist())) > 80 and np.mean(first == IDS) < 0.05
    steps = np.sort(logits, -1)
    assert np.median(steps[:, -1] - steps[:, -2]) > 0.3


@pytest.mark.parametrize(("kind", "agree"), [("f16", 0.98), ("q8_0", 0.9), ("q4_0", 0.5)])
def test_types_agree_through_upstream(
    kind: str, agree: float, tmp_path: Path, load: Callable[[Path], Any]
) -> None:
    maker.write(tmp_path / "a.gguf", type="f32")
    maker.write(tmp_path / "b.gguf", type=kind)
    a, b = (load(tmp_path / name).argmax(-1) for name in ("a.gguf", "b.gguf"))
    assert np.mean(a == b) >= agree
