"""Headers that lie, are cut off or are random give an error of one line: no other exception and no large
allocation."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllama_long.gguf_file import (
    Array,
    GGUFError,
    GGUFFile,
    RepeatedToken,
    read_gguf,
    read_header,
    read_parts,
)

STRING, ARRAY, UINT32, FLOAT32 = 8, 9, 4, 6
HUGE = 2**63


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: bytes = b"w", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    n = len(shape)
    return text(name) + struct.pack(f"<I{n}QIQ", n, *shape, kind, offset)


def header(
    entries: list[bytes], tensors: list[bytes], n_entries: int | None = None, n_tensors: int | None = None
) -> bytes:
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(entries) if n_entries is None else n_entries,
    )
    return b"GGUF" + struct.pack("<IQQ", 3, *counts) + b"".join(entries + tensors)


GOOD = [
    entry(b"general.architecture", STRING, text(b"llama")),
    entry(b"llama.context_length", UINT32, struct.pack("<I", 512)),
    entry(b"words", ARRAY, struct.pack("<IQ", STRING, 2) + text(b"a") + text(b"b")),
    entry(b"few", ARRAY, struct.pack("<IQ2I", UINT32, 2, 7, 8)),
    entry(b"many", ARRAY, struct.pack("<IQ", UINT32, 5000) + bytes(20000)),
]


def read(folder: Path, data: bytes) -> GGUFFile:
    path = folder / "model.gguf"
    path.write_bytes(data)
    return read_gguf(path)


def test_values_and_tensors_are_read(tmp_path: Path) -> None:
    data = header(GOOD, [tensor(b"a", (32, 4)), tensor(b"b", (64,), 8, 512)])
    file = read(tmp_path, data + bytes(64 + 512 + 68))
    assert file.values["general.architecture"] == "llama"
    assert file.values["llama.context_length"] == 512
    assert file.values["words"] == Array(2)
    assert file.values["few"] == (7, 8)
    assert file.values["many"] == Array(5000)
    assert [(t.name, t.shape, t.type.name, t.n_bytes) for t in file.tensors] == [
        ("a", (32, 4), "F32", 512),
        ("b", (64,), "Q8_0", 68),
    ]


BAD = {
    "empty": (b"", "is empty"),
    "foreign": (b"PK\x03\x04" + bytes(100), "is not a GGUF file"),
    "only magic": (b"GGUF", "truncated"),
    "version": (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "tensor count": (header(GOOD, [], n_tensors=HUGE), "announces 9223372036854775808 tensors"),
    "entry count": (header(GOOD, [], n_entries=HUGE), "announces 9223372036854775808 metadata entries"),
    "key length": (
        header([struct.pack("<Q", HUGE) + bytes(64)], []),
        "a metadata key of 922337203685",
    ),
    "text length": (header([entry(b"k", STRING, struct.pack("<Q", 10**6))], []), "k needs 1000000 bytes"),
    "array length": (header([entry(b"k", ARRAY, struct.pack("<IQ", FLOAT32, HUGE))], []), "numbers in k"),
    "string array": (header([entry(b"k", ARRAY, struct.pack("<IQ", STRING, 2**40))], []), "strings in k"),
    "nested array": (header([entry(b"k", ARRAY, struct.pack("<IQ", ARRAY, 1))], []), "array of arrays"),
    "value type": (header([entry(b"k", 77, bytes(8))], []), "unknown type 77"),
    "twice": (header([GOOD[0], GOOD[0]], []), "there twice"),
    "dimensions": (header(GOOD, [text(b"w") + struct.pack("<I", 2**31) + bytes(64)]), "dimensions"),
    "tensor type": (header(GOOD, [tensor(kind=999)]), "type of 'w' is 999"),
    "odd block": (header(GOOD, [tensor(shape=(33,), kind=8)]), "shape"),
    "no data": (header(GOOD, [tensor(shape=(2**40, 2**20))]), "tensor 'w' ends at byte"),
    "offset": (header(GOOD, [tensor(offset=2**60)]), "is truncated"),
    "alignment": (header([entry(b"general.alignment", UINT32, bytes(4))], [tensor()]), "alignment"),
}


def words(*tokens: bytes) -> list[bytes]:
    array = struct.pack("<IQ", STRING, len(tokens)) + b"".join(map(text, tokens))
    return [entry(b"tokenizer.ggml.tokens", ARRAY, array)]


@pytest.mark.parametrize("tokens", [(b"a", b"b", b"a"), (b"a\0b", b"a\0c"), (b"", b"[EMPTY_0]")], ids=str)
def test_a_token_that_is_there_twice(tmp_path: Path, tokens: tuple[bytes, ...]) -> None:
    data = header(words(*tokens), [])
    with pytest.raises(RepeatedToken, match=r"is damaged: the token '.+' is there twice"):
        read(tmp_path, data)
    with pytest.raises(RepeatedToken):
        read_header(tmp_path / "model.gguf")


def test_tokens_that_differ(tmp_path: Path) -> None:
    # Empty tokens do not count as repeated: llama.cpp gives each a name of its own.
    assert read(tmp_path, header(words(b"", b"a", b"", b"A"), [])).values["tokenizer.ggml.tokens"] == Array(4)


def test_what_is_wrong_with_tensors_is_told_beside_the_values(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for tensors, message, n in (
        ([tensor(b"new", kind=999), tensor(b"old")], "the type of 'new' is 999", 1),
        ([tensor(shape=(2**40, 2**20))], "is truncated", 1),
        ([tensor(b"a"), text(b"w")], "has 0 dimensions", 1),
    ):
        path.write_bytes(header(GOOD, tensors) + bytes(200))
        file = read_header(path)
        assert message in file.wrong and len(file.tensors) == n
        assert file.values["llama.context_length"] == 512
        with pytest.raises(GGUFError, match=message):
            read_gguf(path)


def test_a_header_that_was_read_stands_for_its_path(tmp_path: Path, demo_model: str) -> None:
    file = read_header(demo_model)
    assert read_header(file) is read_parts(file) is file
    assert os.fspath(file) == demo_model


def test_strings_that_end_beyond_the_file(tmp_path: Path) -> None:
    many = [text(b"x" * n) for n in range(9, 12)]
    for last in (struct.pack("<Q", 2**63), struct.pack("<Q", 2**64 - 8), b"\x01\x00\x00", b""):
        array = struct.pack("<IQ", STRING, 4) + b"".join(many) + last
        data = header([*GOOD, entry(b"tail", ARRAY, array)], [])
        with pytest.raises(GGUFError, match="truncated or damaged: tail ends beyond"):
            read(tmp_path, data)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gives_one_line(tmp_path: Path, name: str) -> None:
    data, message = BAD[name]
    tracemalloc.start()
    try:
        with pytest.raises(GGUFError, match=message) as caught:
            read(tmp_path, data)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="is a directory"):
        read_gguf(tmp_path)
    with pytest.raises(GGUFError, match="does not exist"):
        read_gguf(tmp_path / "missing.gguf")


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400))
def test_random_bytes_after_the_magic(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    with pytest.raises(GGUFError):
        read(tmp_path_factory.mktemp("random"), b"GGUF" + struct.pack("<I", 3) + data + bytes(1))


def test_every_cut_and_flipped_bytes_of_the_embedded_model(tmp_path: Path, demo_model: str) -> None:
    whole = Path(demo_model).read_bytes()
    n = len(read_gguf(demo_model).tensors)
    chance = random.Random(0)
    for _ in range(100):
        cut = chance.randrange(1, len(whole)) if chance.random() < 0.5 else chance.randrange(1, 4000)
        with pytest.raises(GGUFError):
            read(tmp_path, whole[:cut])
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(3):
            data[chance.randrange(4, 90000)] = chance.randrange(256)
        try:
            assert len(read(tmp_path, bytes(data)).tensors) == n
        except GGUFError as error:
            assert "\n" not in str(error).replace("\\n", "")
