"""Writes GGUF models with random weights: small ones for tests, and well-known shapes for benches.

    python scripts/make_random_gguf.py --arch qwen3 --out q.gguf --n-layer 2 --type q8_0
    python scripts/make_random_gguf.py --preset llama-3.1-8b --type q4_0 --out 8b.gguf
    python scripts/make_random_gguf.py --like gpt-oss-20b --type q8_0 --out oss.gguf

The weights are scaled so that such a model behaves like a trained one where it matters for comparing
programs: attention logits have a standard deviation of about 2.5, so a few keys of any distance dominate;
output logits of about 3, so one token leads. The same seed gives the same weights in every type, up to
rounding. Tensors are made and written block by block, so memory does not grow with the model. Presets named
after today's models (--like) have their layers in full size, but fewer of them and fewer experts, and repeat a
random block in big matrices: random_gguf/shapes.py says how many. Needs the package gguf.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from random_gguf.shapes import ARCHS, DELTA_PERIOD, LIKE, PRESETS, Arch, Shape, ShapeError
from random_gguf.vocab import add_tokenizer, copy_tokenizer
from random_gguf.weights import CONV_TOKENS, STATE_SIZE, Tensor, tensors

__all__ = ["ARCHS", "LIKE", "PRESETS", "Arch", "Shape", "ShapeError", "write"]

TYPES = {name: gguf.GGMLQuantizationType[name.upper()] for name in ("f32", "f16", "bf16", "q8_0", "q4_0")}
FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}


def add_keys(writer: gguf.GGUFWriter, arch: Arch, s: Shape) -> None:
    """The keys of the shape, as a converter writes them."""
    writer.add_context_length(s.n_ctx_train)
    writer.add_embedding_length(s.n_embd)
    writer.add_block_count(s.n_layer)
    writer.add_feed_forward_length(s.n_ff_dense or s.n_ff)
    writer.add_head_count(s.n_head)
    own_heads = arch.full_heads or arch.state in ("conv", "ssm")
    writer.add_head_count_kv(arch.heads_kv(s) if own_heads else s.n_head_kv)
    if s.kv_rank:
        add_latent_keys(writer, s)
    else:
        writer.add_key_length(s.head_dim_full if arch.full_heads else s.head_dim)
        writer.add_value_length(s.head_dim_full if arch.full_heads else s.head_dim)
    writer.add_layer_norm_rms_eps(s.rms_eps)
    writer.add_vocab_size(s.n_vocab)
    if arch.max_bias:
        writer.add_layer_norm_eps(s.rms_eps)
        writer.add_max_alibi_bias(arch.max_bias)
    else:
        writer.add_rope_dimension_count(s.head_dim_full if arch.full_heads else s.n_rot)
        writer.add_rope_freq_base(s.rope_base)
        if arch.sections:
            writer.add_rope_dimension_sections([*(int(share * s.n_rot / 2) for share in arch.sections), 0])
    if s.n_expert:
        writer.add_expert_count(s.n_expert)
        writer.add_expert_used_count(s.n_expert_used)
        if arch.key != "llama":
            writer.add_expert_feed_forward_length(s.n_ff)
    if arch.caps:
        writer.add_attn_logit_softcapping(arch.caps[0])
        writer.add_final_logit_softcapping(arch.caps[1])
    if arch.state == "conv":
        writer.add_shortconv_l_cache(CONV_TOKENS)
    if arch.state == "ssm":
        writer.add_ssm_conv_kernel(CONV_TOKENS)
        writer.add_ssm_inner_size(2 * s.n_embd)
        writer.add_ssm_state_size(STATE_SIZE)
        writer.add_ssm_time_step_rank(s.n_embd // 16)
    if arch.state == "delta":
        writer.add_ssm_conv_kernel(CONV_TOKENS)
        writer.add_ssm_inner_size(s.delta_v * s.delta_dim)
        writer.add_ssm_state_size(s.delta_dim)
        writer.add_ssm_time_step_rank(s.delta_v)
        writer.add_ssm_group_count(s.delta_k)
        writer.add_uint32(f"{arch.key}.full_attention_interval", DELTA_PERIOD)
    if s.sliding_window:
        writer.add_sliding_window(s.sliding_window)
        windows = [arch.windowed(s, i) for i in range(s.n_layer)]
        writer.add_sliding_window_pattern(windows if arch.full_heads else s.sliding_pattern)
    if arch.full_heads:
        writer.add_key_length_swa(s.head_dim)
        writer.add_value_length_swa(s.head_dim)
        writer.add_rope_dimension_count_swa(s.n_rot)
        writer.add_rope_freq_base_swa(10000.0)
        writer.add_embedding_length_per_layer_input(0)
        writer.add_shared_kv_layers(s.n_shared)
    if s.rope_scaling in ("linear", "yarn", "longrope"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(s.rope_scaling))
        writer.add_rope_scaling_orig_ctx_len(s.n_ctx_original)
    if s.rope_scaling in ("linear", "yarn"):
        writer.add_rope_scaling_factor(s.rope_factor)
    if s.rope_scaling == "longrope":
        magnitude = math.sqrt(1 + math.log(s.rope_factor) / math.log(max(2, s.n_ctx_original)))
        writer.add_rope_scaling_attn_factors(magnitude)


def add_latent_keys(writer: gguf.GGUFWriter, s: Shape) -> None:
    """Those of multi-head latent attention, and of the experts that such models have."""
    writer.add_key_length(s.kv_rank + s.n_rot)
    writer.add_value_length(s.kv_rank)
    writer.add_key_length_mla(s.head_dim)
    writer.add_value_length_mla(s.head_dim_v)
    writer.add_kv_lora_rank(s.kv_rank)
    writer.add_q_lora_rank(s.q_rank)
    writer.add_leading_dense_block_count(s.n_dense)
    writer.add_expert_shared_count(1)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_norm(True)
    if s.rope_scaling == "yarn":  # the magnitude is part of the scale of all logits
        writer.add_rope_scaling_yarn_log_mul(0.1)
    if not s.n_expert:
        writer.add_expert_feed_forward_length(s.n_ff)


def write(
    path: str | os.PathLike[str],
    arch: str = "llama",
    *,
    preset: str = "",
    type: str = "f16",
    seed: int = 0,
    repeat: bool | None = None,
    tokenizer_from: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **shape: Any,
) -> Shape:
    """Writes a random model and returns its shape.

    arch: a name of ARCHS. preset: a name of PRESETS, which says arch and shape. type: a name of TYPES, for
    the matrices; vectors are F32. shape: fields of Shape that differ from the architecture's (preset's) own.
    repeat: big matrices repeat their first block, which is quick; by default those of LIKE.
    tokenizer_from: a GGUF whose vocabulary is used, with its size. progress(done, total) counts bytes. Raises
    ShapeError when the numbers do not fit together, or a name is unknown.
    """
    if preset:
        arch, own = _choose("preset", preset, PRESETS)
        shape = {**own, **shape}
    repeat = preset in LIKE if repeat is None else repeat
    kind, quant = _choose("arch", arch, ARCHS), _choose("type", type, TYPES)
    if unknown := set(shape).difference(field.name for field in dataclasses.fields(Shape)):
        raise ShapeError(f"unknown shape value {', '.join(sorted(unknown))}")
    writer = gguf.GGUFWriter(path, kind.key)
    if tokenizer_from is not None:
        shape["n_vocab"] = copy_tokenizer(writer, tokenizer_from)
    s: Shape = dataclasses.replace(kind.shape, **shape).settled(arch)
    if tokenizer_from is None:
        add_tokenizer(writer, s.n_vocab)
    # The name does not contain it: llama.cpp expects Phi's own tokens in a model called phi3.
    writer.add_name(f"random weights, seed {seed}")
    writer.add_description(f"shape of {preset or arch}")
    writer.add_file_type(FILE_TYPES[type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_keys(writer, kind, s)

    todo = [(t, quant if t.matrix else gguf.GGMLQuantizationType.F32) for t in tensors(kind, s)]
    for tensor, as_type in todo:
        size = _bytes(tensor, as_type)
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=as_type)
    total = sum(_bytes(tensor, as_type) for tensor, as_type in todo)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    done = 0
    for tensor, as_type in todo:
        end = done + _bytes(tensor, as_type)
        for block in tensor.blocks(seed):
            data = gguf.quants.quantize(block, as_type).tobytes()
            while done < end:
                done += file.write(data[: end - done])
                if progress:
                    progress(done, total)
                if not repeat:
                    break
            if done == end:
                break
        writer.write_padding(file, _bytes(tensor, as_type))
    writer.close()
    return s


def _bytes(tensor: Tensor, as_type: gguf.GGMLQuantizationType) -> int:
    per_block, size = gguf.GGML_QUANT_SIZES[as_type]
    return math.prod(tensor.shape) // per_block * size


def _choose(what: str, name: str, table: dict[str, Any]) -> Any:
    if name not in table:
        raise ShapeError(f"unknown {what} {name!r}; known: {', '.join(table)}")
    return table[name]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--arch", default="llama", help=", ".join(ARCHS))
    others = ", ".join(name for name in PRESETS if name not in LIKE)
    likes = f"fewer layers and experts, of the full size: {', '.join(LIKE)}"
    parser.add_argument("--preset", "--like", default="", help=f"a well-known shape: {others}; with {likes}")
    parser.add_argument("--type", default="f16", help=", ".join(TYPES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer-from", type=Path, help="GGUF file whose vocabulary is copied")
    for field in dataclasses.fields(Shape):
        option = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=None)
        else:
            parser.add_argument(option, type=field.default.__class__, default=None)
    args = vars(parser.parse_args(argv))
    shape = {f.name: value for f in dataclasses.fields(Shape) if (value := args.pop(f.name)) is not None}
    out: Path = args.pop("out")
    start = time.monotonic()

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done / total:4.0%} of {total / 1e9:.2f} GB", end="", file=sys.stderr, flush=True)

    try:
        s = write(out, progress=show, **args, **shape)
    except (ShapeError, OSError) as error:
        print(f"make_random_gguf: error: {error}", file=sys.stderr)
        return 1
    size, seconds = out.stat().st_size / 1e6, time.monotonic() - start
    print(
        f"{out}: {s.n_layer} layers of {s.n_embd}, {s.n_head}/{s.n_head_kv} heads of {s.head_dim}, ", end=""
    )
    print(f"{s.n_vocab} tokens, {size:.1f} MB in {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
