"""Multi-head latent attention: the op takes every layer and equals upstream's, under every policy it equals the same
model with keys and values of all heads in the cache."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import make_random_gguf
import numpy as np
import pytest
from raw_model import Context, Logits, Model
from saved_state import restore, save

from pyllama_long import LongLlama, _native, log
from pyllama_long._native import llama_cpp as C

SHAPE: dict[str, Any] = {
    "n_layer": 2,
    "n_head": 10,
    "head_dim": 96,
    "n_rot": 64,
    "kv_rank": 512,
    "n_ctx_train": 256,
}
TAKEN = [(0, ""), (1, "")]
POLICIES = (
    "native",
    "yarn(4)",
    "ntk(4)",
    "dca",
    "self-extend(4, 128)",
    "rerope(128)+logn",
    "rerope(128)+yarn(2)",
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mla") / "mla.gguf"
    make_random_gguf.write(path, "deepseek2", type="f32", seed=1, **SHAPE)
    return path


@pytest.fixture(scope="module")
def latent(path: Path) -> Iterator[Model]:
    """Heads of 576 and 512 dims, as those of DeepSeek-V2 and of GLM-4.7-Flash."""
    with closing(Model(path)) as model:
        yield model


@pytest.fixture(scope="module")
def twin(path: Path) -> Iterator[Model]:
    """The same weights in the older form, whose cache holds K and V of every head."""
    there = path.with_name("twin.gguf")
    write_twin(path, there)
    with closing(Model(there)) as model:
        yield model


def write_twin(source: Path, path: Path) -> None:
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(path, "deepseek2")
    n_head, k, v = SHAPE["n_head"], SHAPE["head_dim"], SHAPE["head_dim"]
    ours = {"head_count_kv": n_head, "key_length": k, "value_length": v}
    for name, value in ours.items():
        writer.add_uint32(f"deepseek2.attention.{name}", value)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        if field.name.removeprefix("deepseek2.attention.") in (*ours, "key_length_mla", "value_length_mla"):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    keys = {}
    for tensor in reader.tensors:
        data = np.array(tensor.data).reshape(tensor.shape[::-1])
        if "attn_k_b" in tensor.name:
            keys[tensor.name.split(".")[1]] = data.swapaxes(1, 2)  # [n_head, unrotated dims, kv_rank]
        elif "attn_v_b" in tensor.name:
            both = np.concatenate([keys[tensor.name.split(".")[1]], data], axis=1)
            writer.add_tensor(tensor.name.replace("attn_v_b", "attn_kv_b"), both.reshape(-1, both.shape[-1]))
        else:
            writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def near(a: Logits, b: Logits, share: float) -> None:
    """By the mean square of what differs; a wrong rotation gives a share of about 1."""
    assert np.sqrt(np.mean((a - b) ** 2)) <= share * b.std()


def upstreams(model: Model, tokens: list[int], kv_type: str = "f32") -> Logits:
    with model.context(1024, None, kv_type=kv_type) as context:
        return context.decode(tokens)


# ---- exact ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0"])
def test_prefill_in_chunks_equals_upstreams(latent: Model, kv_type: str) -> None:
    tokens = latent.tokens(400)
    expected = upstreams(latent, tokens, kv_type)
    with latent.context(1024, kv_type=kv_type) as context:
        assert context.layers() == TAKEN
        cuts = [0, 1, 8, 133, 134, 390, 399, 400]
        chunks = [context.decode(tokens[a:b], a) for a, b in itertools.pairwise(cuts)]
    allowed = {"f32": 2e-3, "f16": 2e-3, "q8_0": 0.1}[
        kv_type
    ]  # upstream rounds q and V to the cache's precision
    near(np.concatenate(chunks), expected, allowed)


def test_greedy_text_equals_upstreams(latent: Model) -> None:
    def greedy(plan: str | None) -> list[int]:
        out: list[int] = []
        with latent.context(512, plan) as context:
            logits = context.decode(latent.tokens(100, seed=5))[-1]
            for i in range(256):
                out.append(int(logits.argmax()))
                logits = context.decode(out[-1:], 100 + i)[-1]
        return out

    assert greedy("exact") == greedy(None)


@pytest.mark.parametrize("unified", [True, False])
def test_two_sequences_equal_each_alone(latent: Model, unified: bool) -> None:
    texts = [latent.tokens(90, seed) for seed in (1, 2)]
    alone = [upstreams(latent, tokens) for tokens in texts]
    with latent.context(1024, kv_type="f32", n_seq=2, unified=unified) as context:
        rows = [(t, at, s) for s in (0, 1) for at, t in enumerate(texts[s][:80])]
        logits = [context.decode_rows(rows)]
        for at in range(80, 90):
            logits.append(context.decode_rows([(texts[s][at], at, s) for s in (0, 1)]))
    for s in (0, 1):
        found = np.concatenate([logits[0][80 * s : 80 * s + 80], *(one[s : s + 1] for one in logits[1:])])
        np.testing.assert_allclose(found, alone[s], atol=0.02)


def test_a_removed_tail_and_a_restored_state(latent: Model) -> None:
    tokens = latent.tokens(200)
    expected = upstreams(latent, tokens)
    with latent.context(512, kv_type="f32") as context:
        context.decode(tokens[:120])
        context.decode(latent.tokens(40, seed=9), 120)
        C.llama_memory_seq_rm(context.memory, 0, 120, -1)
        again = context.decode(tokens[120:150], 120)
        kept = save(context)
    with latent.context(512, kv_type="f32") as context:
        assert restore(context, kept)
        rest = context.decode(tokens[150:], 150)
        assert context.layers() == TAKEN
    np.testing.assert_allclose(np.concatenate([again, rest]), expected[120:], atol=0.02)


def test_no_mask_is_made(latent: Model) -> None:
    """Upstream's mask of a prefill takes 2 bytes per token and cell."""
    n_ctx, n_ubatch = 65536, 512

    def compute_mib(plan: str | None) -> float:
        lines: list[str] = []
        keep = C.llama_log_callback(lambda _level, text, _data: lines.append(text.decode()))
        C.llama_log_set(keep, None)
        with latent.context(n_ctx, plan, n_ubatch=n_ubatch):
            log.install(verbose=False)
        (size,) = re.findall(r"CPU compute buffer size = *([0-9.]+) MiB", "".join(lines))
        return float(size)

    assert compute_mib("exact") < compute_mib(None) - n_ctx * n_ubatch * 2 / 2**20 / 2


def test_file_with_experts_and_yarn_of_its_own(tmp_path: Path) -> None:
    """Whose magnitude is part of the scale of all logits."""
    yarn = {"rope_scaling": "yarn", "rope_factor": 4.0}
    options: dict[str, Any] = {**SHAPE, **yarn, "n_expert": 4, "n_ff_dense": 256, "type": "f32"}
    with Model.random(tmp_path, "deepseek2", **options) as model:
        tokens = model.tokens(300)
        with model.context(1024, kv_type="f32") as context:
            found = context.decode(tokens)
            assert context.layers() == TAKEN
        np.testing.assert_allclose(found, upstreams(model, tokens), atol=0.02)


# ---- RoPE policies -------------------------------------------------------------------------------------------


def logits(model: Model, rope: str, n: int = 500, **options: Any) -> Logits:
    with model.context(1024, rope=rope, kv_type="f32", n_ubatch=256, **options) as context:
        assert context.layers() == TAKEN
        return context.decode(model.tokens(n))


@pytest.mark.parametrize("rope", POLICIES)
def test_policies_equal_those_of_the_twin(latent: Model, twin: Model, rope: str) -> None:
    near(logits(latent, rope), logits(twin, rope), 1e-3)


def test_policies_change_something(latent: Model) -> None:
    found = [logits(latent, rope)[-100:] for rope in POLICIES]
    for a, b in itertools.combinations(found, 2):
        assert np.abs(a - b).max() > 0.1


@pytest.mark.parametrize("kv_type", ["f32", "q8_0"])
def test_dynamic_factors_rotate_cached_keys(latent: Model, twin: Model, kv_type: str) -> None:
    tokens, found = latent.tokens(300), []
    for model in (latent, twin):
        with model.context(1024, rope="dynamic-yarn", kv_type=kv_type) as context:
            context.decode(tokens[:200])
            _native.set_rope_factor(context.ptr, 0, 4.0)
            found.append(context.decode(tokens[200:], 200))
    near(found[0], found[1], {"f32": 1e-3, "q8_0": 0.1}[kv_type])


@pytest.mark.parametrize("plan", ["exact", None])
def test_shifted_keys(latent: Model, twin: Model, plan: str | None) -> None:
    """Of a cache from whose middle a part was removed."""

    def shifted(context: Context) -> Logits:
        tokens = latent.tokens(200)
        context.decode(tokens[:150])
        C.llama_memory_seq_rm(context.memory, 0, 20, 60)
        C.llama_memory_seq_add(context.memory, 0, 60, -1, -40)
        return context.decode(tokens[150:], 110)

    with latent.context(512, plan, kv_type="f32") as one, twin.context(512, kv_type="f32") as other:
        near(shifted(one), shifted(other), 1e-3 if plan else 5e-3)  # upstream's attention rounds keys to f16


def test_long_llama_takes_all_layers(path: Path) -> None:
    with closing(LongLlama(str(path), n_ctx=1024, rope="rerope(128)+logn", verbose=False)) as llm:
        assert "layers with llama.cpp's own attention: none" in llm.explain()
        llm.eval([1, 2, 3])
