from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import pytest
from test_gguf_file import ARRAY, FLOAT32, STRING, UINT32, entry, header, tensor, text

from pyllama_long.gguf_file import GGUFError
from pyllama_long.model_info import ModelInfo, model_info

INT32 = 5


def number(name: str, value: int) -> bytes:
    return entry(name.encode(), UINT32, struct.pack("<I", value))


def numbers(name: str, *values: int) -> bytes:
    return entry(name.encode(), ARRAY, struct.pack(f"<IQ{len(values)}i", INT32, len(values), *values))


def info_of(folder: Path, *entries: bytes, tensors: tuple[bytes, ...] = ()) -> ModelInfo:
    path = folder / "model.gguf"
    architecture = entry(b"general.architecture", STRING, text(b"llama"))
    path.write_bytes(header([architecture, *entries], list(tensors)) + bytes(4096))
    return model_info(path)


SHAPE = (
    number("llama.context_length", 4096),
    number("llama.block_count", 3),
    number("llama.embedding_length", 256),
    number("llama.attention.head_count", 8),
)


def test_the_embedded_model(demo_model: str) -> None:
    info = model_info(demo_model)
    assert (info.architecture, info.n_train, info.n_layer, info.n_head) == ("llama", 512, 6, 4)
    assert info.kv_heads == (2,) * 6
    assert info.kv_bytes_per_token("f16") == 6 * 2 * (64 + 64) * 2
    assert info.kv_bytes_per_token("q8_0") == 6 * 2 * (64 + 64) * 34 / 32
    assert info.memory(51200) == Path(demo_model).stat().st_size + 51200 * 3072
    assert info.rope["freq_base"] == 10000.0
    assert info.rope_scaling is None and info.dilated is None and info.chat_template


def test_defaults_where_keys_are_missing(tmp_path: Path) -> None:
    info = info_of(tmp_path, *SHAPE)
    assert info.kv_heads == (8, 8, 8)
    assert (info.key_length, info.value_length) == (32, 32)


def test_heads_per_layer(tmp_path: Path) -> None:
    info = info_of(tmp_path, *SHAPE, numbers("llama.attention.head_count_kv", 2, 0, 4))
    assert info.kv_bytes_per_token("f16") == 6 * 64 * 2


def test_scaling_and_dilated_keys(tmp_path: Path) -> None:
    segments = numbers("llama.attention.dilated.segment_lengths", 2048, 4096)
    rates = numbers("llama.attention.dilated.rates", 1, 2)
    info = info_of(tmp_path, *SHAPE, segments, rates, tensors=(tensor(b"rope_freqs.weight"),))
    assert info.dilated == ((2048, 4096), (1, 2))
    assert info.rope_scaling == "llama3"
    yarn = entry(b"llama.rope.scaling.type", STRING, text(b"yarn"))
    four = entry(b"llama.rope.scaling.factor", FLOAT32, struct.pack("<f", 4))
    assert info_of(tmp_path, *SHAPE, yarn, four).rope_scaling == "yarn"
    assert info_of(tmp_path, *SHAPE, yarn).rope_scaling is None  # llama.cpp takes a missing factor for 1


def test_no_architecture(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(header([], []))
    with pytest.raises(GGUFError, match="does not name an architecture"):
        model_info(path)


@pytest.mark.parametrize(
    "bad",
    [
        number("llama.block_count", 2**31 - 1),
        entry(b"llama.context_length", STRING, text(b"many")),
        entry(b"llama.context_length", FLOAT32, struct.pack("<f", float("nan"))),
        numbers("llama.attention.head_count_kv", 1, -1, 1),
    ],
)
def test_numbers_that_cannot_be(tmp_path: Path, bad: bytes) -> None:
    name = bad[8 : 8 + struct.unpack_from("<Q", bad)[0]]
    kept = [e for e in SHAPE if name not in e]
    with pytest.raises(GGUFError, match="is damaged"):
        info_of(tmp_path, *kept, bad)


def test_a_number_that_is_not_finite_stays_printable(tmp_path: Path) -> None:
    base = entry(b"llama.rope.freq_base", FLOAT32, struct.pack("<f", float("inf")))
    assert info_of(tmp_path, *SHAPE, base).rope == {"freq_base": "inf"}
    assert dataclasses.asdict(info_of(tmp_path, *SHAPE, base))
