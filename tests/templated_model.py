"""The embedded model with another chat template, and tokens for its marks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf

FIRST = 8000  # token that becomes the first of the marks
_CONTROL = 3


def write(model: str, path: Path, template: str, marks: Sequence[str]) -> str:
    """marks: names of control tokens. Returns the path."""
    reader = gguf.GGUFReader(model)
    architecture = "general.architecture"
    writer = gguf.GGUFWriter(path, reader.fields[architecture].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == architecture:
            continue
        value, kind = field.contents(), field.types[0]
        if key == "tokenizer.chat_template":
            value = template
        if key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
            new = marks if key.endswith("tokens") else [_CONTROL] * len(marks)
            value = [*value[:FIRST], *new, *value[FIRST + len(marks) :]]
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)
