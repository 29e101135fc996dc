"""The embedded model with float32 weights.

Where llama.cpp's own products run (product() == "upstream"), those of quantized weights add in another order for one
row than for many. If a last bit makes a rounded activation go the other way, a logit changes by some tenths. Comparing
answers in different batches would then be a test of ggml.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt


def write(source: str, path: Path, added: Mapping[str, npt.NDArray[np.float32]] | None = None) -> None:
    """added: what is added to tensors, by their names."""
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
