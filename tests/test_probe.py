"""Files that make llama.cpp end the process, or that mean another length than they seem to."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import fuzz_gguf
import gguf
import make_random_gguf
import pytest
from fuzzing.child import forked
from fuzzing.gguf import Entry, Model
from random_gguf.shapes import ARCHS

from pyllama_long import LongLlama, _native, context_options, keywords
from pyllama_long.cli.inspect import choice
from pyllama_long.errors import ModelError
from pyllama_long.gguf_file import GGUFError
from pyllama_long.model_info import model_info
from pyllama_long.params import context_params
from pyllama_long.phase import Branch
from pyllama_long.plan_error import PlanError
from pyllama_long.probe import probe
from pyllama_long.rope import RopeError, RopePolicy, Takes
from pyllama_long.rope_scaling import read_scaling

SMALL: dict[str, Any] = {"n_layer": 2, "n_vocab": 288, "n_ctx_train": 256}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("probe") / "llama.gguf"
    make_random_gguf.write(path, "llama", n_embd=64, **SMALL)
    return path.read_bytes()


def changed(data: bytes, path: Path, **keys: tuple[int, bytes]) -> Path:
    """The model with keys set (`__` for a dot): gguf_type and bytes of the value."""
    model = Model(data)
    named = {key.replace("__", ".").encode(): value for key, value in keys.items()}
    entries = [e for e in model.entries if e.key not in named]
    entries += [Entry(key, kind, value) for key, (kind, value) in named.items()]
    path.write_bytes(model.raw(entries, model.infos))
    return path


def text(value: bytes) -> tuple[int, bytes]:
    return 8, struct.pack("<Q", len(value)) + value


def number(value: int) -> tuple[int, bytes]:
    return 4, struct.pack("<I", value)


def numbers(*values: int) -> tuple[int, bytes]:
    return 9, struct.pack(f"<IQ{len(values)}I", 4, len(values), *values)


@pytest.mark.parametrize(
    "key, value",
    [
        ("llama__rope__scaling__type", text(b"foo")),
        ("general__alignment", number(16)),
        ("general__alignment", number(2)),
        ("general__alignment", number(1)),
        ("llama__expert_count", number(4)),
        ("llama__expert_used_count", number(2**31 - 1)),
        ("llama__attention__head_count", number(0)),
        ("llama__attention__head_count_kv", number(3)),
        ("llama__attention__sliding_window", text(b"x")),
        ("tokenizer__ggml__model", text(b"none")),
        ("llama__attention__dilated__rates", numbers(2**31 - 1)),
    ],
)
def test_no_value_of_a_key_ends_the_process(
    plain: bytes, tmp_path: Path, key: str, value: tuple[int, bytes]
) -> None:
    path = changed(plain, tmp_path / "m.gguf", **{key: value})
    how, said = forked(lambda: fuzz_gguf.load(str(path)), 60)
    assert how == "ok" and said and "\n" not in said


def test_an_assertion_becomes_one_line(plain: bytes, tmp_path: Path) -> None:
    path = changed(plain, tmp_path / "m.gguf", llama__rope__scaling__type=text(b"foo"))
    with pytest.raises(ModelError, match=r"rope_scaling_type_train"):
        LongLlama(str(path), n_ctx=64)
    with pytest.raises(GGUFError, match=r"rope.scaling.type is 'foo'; known: none, linear"):
        model_info(path)


def test_a_sample_of_damaged_files_and_states(tmp_path: Path) -> None:
    how, said = forked(lambda: json.dumps(fuzz_gguf.fuzz_files(36, 5, 60, tmp_path)), 300)
    assert how == "ok" and json.loads(said)["bad"] == 0
    how, said = forked(lambda: json.dumps(fuzz_gguf.fuzz_states(20, 5, 60)), 300)
    assert how == "ok" and json.loads(said)["bad_states"] == 0


def test_lengths_that_overflow_are_refused_in_python_and_in_c() -> None:
    with pytest.raises(PlanError, match="not from 1 to 1073741824"):
        Branch(2**31 - 1, 2**31 - 1)
    with pytest.raises(RopeError, match="1073741824"):
        RopePolicy(map="rerope", chunk=2**31 - 1, n_train=64)
    plan = _native.CPlan()
    plan.phase[0].window = plan.phase[1].window = 1
    plan.phase[0].n_branches = 1
    plan.phase[0].segment[0] = plan.phase[0].rate[0] = 2**31 - 1
    assert b"2^30" in _native.lib.plong_plan_check(plan)
    rope = _native.CRope(factor=1.0, map=1, chunk=2**31 - 1, local=1, n_train=64)
    assert b"2^30" in _native.lib.plong_rope_check(rope)


@pytest.mark.parametrize(
    "keys, tensors, name, reach",
    [
        ({"type": "yarn", "factor": 4.0, "original_context_length": 256}, None, "yarn", 1024),
        ({"type": "yarn", "factor": 4.0}, None, "yarn", 1024),
        ({"type": "yarn", "factor": "4.0", "original_context_length": "64"}, None, "yarn", 256),
        ({"type": "yarn", "factor": 1.0}, None, "", 256),
        ({"type": "linear", "factor": 8.0}, None, "linear", 256),
        ({"factor": 8.0}, None, "linear", 256),
        ({"type": "none", "factor": 8.0}, None, "", 256),
        ({"type": "linear"}, "llama3", "llama3", 256),
        ({"type": "longrope", "original_context_length": 64}, "longrope", "longrope", 256),
        ({}, None, "", 256),
    ],
)
def test_what_rope_keys_mean(keys: dict[str, object], tensors: str | None, name: str, reach: int) -> None:
    values = {f"llama.rope.scaling.{key}": value for key, value in keys.items()}
    found = read_scaling(values, "llama", 256, tensors)
    assert (found.name, found.n_train) == (name, reach)


def test_the_older_name_of_the_factor_counts() -> None:
    assert read_scaling({"llama.rope.scale_linear": 4.0}, "llama", 256, None).name == "linear"
    with pytest.raises(ValueError, match="scale_linear is nan"):
        read_scaling({"llama.rope.scale_linear": float("nan")}, "llama", 256, None)


def test_yarn_over_the_whole_length_reaches_further(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    make_random_gguf.write(path, "llama", n_embd=64, **SMALL, rope_scaling="yarn", rope_factor=4.0)
    changed(path.read_bytes(), path, llama__rope__scaling__original_context_length=number(256))
    assert model_info(path).n_train == 1024
    llm = LongLlama(str(path), n_ctx=1024)
    assert llm.n_train == 1024 and "within the trained length" in llm.rope_reason
    llm.close()


@pytest.mark.filterwarnings("ignore:layers that do not run the plan")
@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_auto_takes_what_the_model_takes_and_inspect_counts_its_memory(tmp_path: Path, arch: str) -> None:
    path = tmp_path / "m.gguf"
    shape = make_random_gguf.write(
        path, arch, n_ctx_train=256, n_layer=max(2, min(ARCHS[arch].shape.n_layer, 7))
    )
    kind = context_options.kv_type("q8_0" if shape.head_dim % 32 == 0 else "f16")
    lengths = (256, 1024, 2560)
    params = context_params(keywords.options({}), 512, kind, kind)
    found = probe(path, params, lengths)
    info = model_info(path)
    takes = Takes(not info.alibi, found.no_map, found.no_scaling)
    for n, size in zip(lengths, found.memory, strict=True):
        name = "q8_0" if kind == 8 else "f16"
        llm = LongLlama(str(path), n_ctx=n, kv_type=name, n_threads=1)
        expected = choice(info, n, "auto", "auto", name, takes, size)
        assert str(llm.rope) == expected["rope"]
        llm.eval([1, 2])
        assert size == allocated(llm) > 0
        llm.close()


def allocated(llm: LongLlama) -> int:
    """The bytes of K, V and states of a context, as it reports them."""
    return int(_native.lib.plong_llama_memory(llm.ctx))


def split(path: Path, n: int) -> list[Path]:
    """Splits a model into two parts; the tensors of the second are in a file of their own."""
    reader = gguf.GGUFReader(path)
    paths = [path.with_name(f"s-{i:05d}-of-{n:05d}.gguf") for i in range(1, n + 1)]
    for i, part in enumerate(paths):
        writer = gguf.GGUFWriter(part, "llama")
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", n)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        if i == 0:
            for key, field in reader.fields.items():
                if not key.startswith(("GGUF.", "general.architecture")):
                    sub = field.types[1] if len(field.types) > 1 else None
                    writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub)
        for tensor in reader.tensors[i::n]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def test_any_part_of_a_split_model_stands_for_all(plain: bytes, tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    whole.write_bytes(plain)
    parts = split(whole, 2)
    for part in parts:
        info = model_info(part)
        assert info.parameters == model_info(whole).parameters
        assert info.file_bytes == sum(p.stat().st_size for p in parts)
        llm = LongLlama(str(part), n_ctx=64)
        llm.eval([1])
        llm.close()
    parts[1].unlink()
    for function in (model_info, lambda path: LongLlama(str(path), n_ctx=64)):
        with pytest.raises(ValueError, match=r"s-00002-of-00002.gguf is missing"):
            function(parts[0])
