"""The embedded model with float32 weights.

ggml's products of quantized weights round the activations to 8 bits. Most processors take other sums for one row than
for many, and where a last bit makes an activation fall the other way, a logit moves by some tenths: what one asks of
answers in different company would be asked of ggml.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt


def write(source: str, path: Path, added: Mapping[str, npt.NDArray[np.float32]] | None = None) -> None:
    """added: by the names of tensors, what is added to them."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, weights + (added or {}).get(tensor.name, np.float32(0)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
