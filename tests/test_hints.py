from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from pyllama_long.gguf_file import read_header
from pyllama_long.hints import Hints, read_hints


def test_hints(tmp_path: Path, demo_model: str) -> None:
    assert read_hints(read_header(demo_model), "llama") == Hints()
    path = tmp_path / "hints.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("llama.attention.dilated.segment_lengths", [64, 256])
    writer.add_array("llama.attention.dilated.rates", [1, 4])
    writer.add_tensor("rope_freqs.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_hints(read_header(path), "llama") == Hints(((64, 256), (1, 4)), "llama3")
    assert read_hints(read_header(path), "other").dilated is None
