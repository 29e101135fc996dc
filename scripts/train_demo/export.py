"""Writes a trained model as GGUF files that llama.cpp loads: f16 and q8_0."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from train_demo.model import Config

TYPES = {
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write(
    path: Path,
    kind: str,
    tensors: Mapping[str, NDArray[np.float32]],
    c: Config,
    tokenizer: Path,
    extension: str = "",
) -> None:
    """Writes one file. kind: a name of TYPES for the matrices. tensors: as in model.shapes(). extension: the RoPE
    policy for texts beyond the trained length, which the file will name."""
    as_type, file_type = TYPES[kind]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(path.stem)
    writer.add_context_length(c.n_ctx)
    writer.add_embedding_length(c.n_embd)
    writer.add_block_count(c.n_layer)
    writer.add_feed_forward_length(c.n_ff)
    writer.add_head_count(c.n_head)
    writer.add_head_count_kv(c.n_head_kv)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_rope_freq_base(c.rope_base)
    if extension:
        writer.add_string("llama.rope.extension", extension)
    writer.add_layer_norm_rms_eps(c.rms_eps)
    writer.add_vocab_size(c.n_vocab)
    if c.segments:
        writer.add_array("llama.attention.dilated.segment_lengths", c.segments)
        writer.add_array("llama.attention.dilated.rates", c.rates)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_tokenizer(writer, json.loads(tokenizer.read_text(encoding="utf-8")))
    for name, tensor in tensors.items():
        data = tensor.astype(np.float32)
        if name.endswith("attn_q"):
            data = interleave(data, c.n_head)
        elif name.endswith("attn_k"):
            data = interleave(data, c.n_head_kv)
        stored = as_type if data.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(data, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleave(rows: NDArray[np.float32], n_head: int, back: bool = False) -> NDArray[np.float32]:
    """[n_head * head_dim, in]: rotary pairs half a head apart -> side by side, as llama.cpp rotates."""
    split = rows.reshape((n_head, -1, 2, rows.shape[1]) if back else (n_head, 2, -1, rows.shape[1]))
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


def read(path: Path) -> dict[str, NDArray[np.float32]]:
    """The tensors of a file that write() wrote, under the names of model.shapes()."""
    reader = gguf.GGUFReader(path)
    n_head, n_head_kv = (
        int(reader.fields[f"llama.attention.{name}"].contents()) for name in ("head_count", "head_count_kv")
    )
    tensors: dict[str, NDArray[np.float32]] = {}
    for tensor in reader.tensors:
        name = tensor.name.removesuffix(".weight")
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if name.endswith("attn_q"):
            data = interleave(data, n_head, back=True)
        elif name.endswith("attn_k"):
            data = interleave(data, n_head_kv, back=True)
        tensors[name] = np.array(data)
    return tensors


def read_vocabulary(path: Path) -> tuple[list[str], list[str]]:
    """The tokens and the merges ("a b") of a file that write() wrote."""
    fields = gguf.GGUFReader(path).fields
    tokens, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    return tokens, merges


def add_tokenizer(writer: gguf.GGUFWriter, tok: dict[str, Any]) -> None:
    """The vocabulary and merges of a tokenizer.json as corpus.py makes it."""
    tokens: dict[int, str] = {i: token for token, i in tok["model"]["vocab"].items()}
    marks = {mark["content"]: mark["id"] for mark in tok["added_tokens"]}
    tokens |= {i: mark for mark, i in marks.items()}
    kinds = gguf.TokenType
    order = range(len(tokens))
    merges = tok["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([tokens[i] for i in order])
    writer.add_token_types([kinds.CONTROL if i in marks.values() else kinds.NORMAL for i in order])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    bos, _, end, pad = marks.values()
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(end)
    writer.add_eot_token_id(end)
    writer.add_pad_token_id(pad)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHATML)
