"""Makes vocabularies without weights: copies of real ones with other keys, and small ones of the other kinds."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # tokenizer.ggml.token_type
_PLACE = "its name goes here"
_WORDS = ("the", "that", "a", "aa", "aaa", "A", "AAAA", "7", "77", ".", "..", "語", "漢語", "\n", "\n\n", "é")


def copy(source: Path, path: Path, **keys: Any) -> Path:
    """A copy of a vocabulary with other values of tokenizer.ggml.KEY; None removes a key. Arrays are lists."""
    fields = gguf.GGUFReader(source).fields
    values = {name: field for name, field in fields.items() if not name.startswith("GGUF.")}
    writer = gguf.GGUFWriter(path, str(values.pop("general.architecture").contents()))
    for name, field in values.items():
        key = name.removeprefix("tokenizer.ggml.")
        if key in keys:
            continue
        kinds = field.types
        writer.add_key_value(name, field.contents(), kinds[0], kinds[1] if len(kinds) > 1 else None)
    for key, value in keys.items():
        _add(writer, f"tokenizer.ggml.{key}", value)
    return _close(writer, path)


def each_pre(source: Path, folder: Path, names: Iterable[str]) -> list[Path]:
    """Copies of a vocabulary, one for each of these values of tokenizer.ggml.pre, made by replacing its bytes."""
    base = copy(source, folder / "base.gguf", pre=_PLACE)
    before, after = base.read_bytes().split(_text(_PLACE))
    out = []
    for name in names:
        path = folder / f"{name}.gguf"
        path.write_bytes(before + _text(name) + after)
        out.append(path)
    return out


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def small(path: Path, model: str, **keys: Any) -> Path:
    """A vocabulary of all bytes and a few words in the form that a tokenizer of this model has."""
    byte_names = {"rwkv": [f"\\x{i:02x}" for i in range(256)]}.get(
        model, [f"<0x{i:02X}>" for i in range(256)]
    )
    space = "\u2581" if model in ("llama", "t5", "bert") else " "
    words = [*_WORDS, *(space + word for word in _WORDS if word.isalnum()), space, "[UNK]", "[SEP]"]
    if model == "rwkv":
        words = [word for word in words if len(word.encode()) > 1]
    if model == "bert":
        words = [word for word in words if word.strip()] + [chr(c) for c in range(97, 123) if c != 97]
    tokens = ["<unk>", "<s>", "</s>", "<pad>", *byte_names, *words, "<|im_start|>", "<|im_end|>"]
    byte_type = BYTE if model in ("llama", "t5", "plamo2") else NORMAL
    types = [UNKNOWN, CONTROL, CONTROL, CONTROL, *[byte_type] * 256, *[NORMAL] * len(words), CONTROL, CONTROL]
    values: dict[str, Any] = {
        "model": model,
        "tokens": tokens,
        "token_type": types,
        "scores": [-float(i % 17) for i in range(len(tokens))],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "seperator_token_id": 2,
    }
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (values | keys).items():
        _add(writer, f"tokenizer.ggml.{key}", value)
    return _close(writer, path)


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING", bytes: "STRING"}
    if value is None:
        return
    if isinstance(value, list):
        inner = {int: "INT32", float: "FLOAT32"}.get(type(value[0]) if value else int, "STRING")
        if value and isinstance(value[0], str | bytes):
            inner = "STRING"
        kind = gguf.GGUFValueType
        writer.add_key_value(name, value, kind.ARRAY, kind[inner])
    else:
        writer.add_key_value(name, value, gguf.GGUFValueType[kinds[type(value)]])


def _close(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
