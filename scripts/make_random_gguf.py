"""Writes GGUF models with random weights: small ones for tests, and well-known shapes for benches.

    python scripts/make_random_gguf.py --arch qwen3 --out q.gguf --n-layer 2 --type q8_0
    python scripts/make_random_gguf.py --preset llama-3.1-8b --type q4_0 --out 8b.gguf

The weights are scaled so that such a model behaves like a trained one where it matters for comparing
programs: attention logits have a standard deviation of about 2.5, so a few keys of any distance dominate;
output logits of about 3, so one token leads. The same seed gives the same weights in every type, up to
rounding. Tensors are made and written block by block, so memory does not grow with the model. Needs the
package gguf.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Progress = Callable[[int, int], None]

BLOCK = 1 << 22  # weights made at a time
ATTENTION_STD = 2.5
LOGIT_STD = 3.0
CONTEXT = 1.5  # size of what all layers add, relative to the embedding
TYPES = {name: gguf.GGMLQuantizationType[name.upper()] for name in ("f32", "f16", "bf16", "q8_0", "q4_0")}
FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
SCALINGS = ("none", "linear", "yarn", "llama3", "longrope")
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class ShapeError(ValueError):
    """A shape that the architecture cannot have: one line that says which numbers do not fit."""


@dataclass(frozen=True)
class Shape:
    """The numbers of a model; 0 means: derived, or absent."""

    n_layer: int = 4
    n_embd: int = 256
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 0  # n_embd / n_head
    n_ff: int = 0  # about 8/3 n_embd; of one expert where there are experts
    n_vocab: int = 512
    n_ctx_train: int = 2048
    rope_base: float = 10000.0
    rope_scaling: str = "none"
    rope_factor: float = 4.0  # with a scaling: n_ctx_train / the length before it
    rms_eps: float = 1e-5
    n_expert: int = 0
    n_expert_used: int = 2
    sliding_window: int = 0
    sliding_pattern: int = 6  # every 6th layer is full
    tied: bool = False  # the output uses the token embedding

    def settled(self, arch: str) -> Shape:
        """With the derived numbers filled in. Raises ShapeError."""
        full = dataclasses.replace(
            self,
            head_dim=self.head_dim or self.n_embd // max(1, self.n_head),
            n_ff=self.n_ff or -(-self.n_embd * 8 // 3 // 64) * 64,
        )
        checks = {
            "n_head must be a multiple of n_head_kv": full.n_head % max(1, full.n_head_kv) == 0,
            "n_embd and n_ff must be multiples of 32": full.n_embd % 32 == 0 == full.n_ff % 32,
            "n_head * head_dim must be a multiple of 32": full.n_head * full.head_dim % 32 == 0,
            "head_dim must be even": full.head_dim % 2 == 0,
            f"{arch} needs head_dim = n_embd / n_head": arch not in ("qwen2", "phi3")
            or full.n_head * full.head_dim == full.n_embd,
            "n_expert_used must be at most n_expert": not full.n_expert
            or full.n_expert_used <= full.n_expert,
            "n_vocab must be at least 261": full.n_vocab >= 261,
            f"rope_scaling must be one of {', '.join(SCALINGS)}": full.rope_scaling in SCALINGS,
            "rope_factor must be at least 1": full.rope_factor >= 1,
        }
        numbers = (full.n_layer, full.n_embd, full.n_head, full.n_head_kv, full.n_ctx_train)
        checks["n_layer, n_embd, n_head, n_head_kv and n_ctx_train must be positive"] = min(numbers) > 0
        for what, holds in checks.items():
            if not holds:
                raise ShapeError(what)
        return full


@dataclass(frozen=True)
class Arch:
    """What a GGUF architecture has beside the common parts."""

    key: str  # general.architecture
    shape: Shape = dataclasses.field(default_factory=Shape)
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norm: bool = False
    fused: bool = False  # one tensor for q, k, v and one for gate and up
    embd_scaled: bool = False  # the graph multiplies the embedding by sqrt(n_embd)


ARCHS = {
    "llama": Arch("llama"),
    "mistral": Arch("llama", Shape(n_head=8, n_head_kv=2, head_dim=32, rope_base=1e6)),
    "mixtral": Arch("llama", Shape(n_expert=8, rope_base=1e6)),
    "qwen2": Arch("qwen2", Shape(rope_base=1e6, tied=True), qkv_bias=True),
    "qwen3": Arch("qwen3", Shape(head_dim=128, rope_base=1e6), qk_norm=True),
    "qwen3moe": Arch("qwen3moe", Shape(head_dim=128, n_ff=192, rope_base=1e6, n_expert=8), qk_norm=True),
    "gemma3": Arch(
        "gemma3",
        Shape(n_layer=7, rope_base=1e6, sliding_window=64, tied=True),
        qk_norm=True,
        post_norm=True,
        embd_scaled=True,
    ),
    "phi3": Arch("phi3", fused=True),
}
LLAMA3 = {"n_vocab": 128256, "n_ctx_train": 131072, "rope_base": 5e5, "rope_scaling": "llama3"}
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2.5-0.5b": (
        "qwen2",
        {"n_layer": 24, "n_embd": 896, "n_head": 14, "n_head_kv": 2, "n_ff": 4864, "n_vocab": 151936}
        | {"n_ctx_train": 32768, "rope_base": 1e6, "tied": True, "rms_eps": 1e-6},
    ),
    "llama-3.2-1b": (
        "llama",
        {"n_layer": 16, "n_embd": 2048, "n_head": 32, "n_head_kv": 8, "n_ff": 8192, "tied": True}
        | LLAMA3
        | {"rope_factor": 32.0},
    ),
    "llama-3.1-8b": (
        "llama",
        {"n_layer": 32, "n_embd": 4096, "n_head": 32, "n_head_kv": 8, "n_ff": 14336}
        | LLAMA3
        | {"rope_factor": 8.0},
    ),
}


# ---- weights -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    """A tensor of `shape` (rows last but one, as NumPy counts): mean + uniform noise of deviation std."""

    name: str
    shape: tuple[int, ...]
    std: float = 0.0
    mean: float = 1.0
    signs: bool = False  # each value times -1 or 1, by chance
    values: Array | None = None  # given, not made

    @property
    def matrix(self) -> bool:
        """Takes the model's type; the others stay in F32."""
        return len(self.shape) > 1 and "ffn_gate_inp" not in self.name

    def blocks(self, seed: int) -> Iterator[Array]:
        """The values in order, as matrices of whole rows, at most about BLOCK values each."""
        if self.values is not None:
            yield self.values.astype(np.float32).reshape(1, -1)
            return
        random = np.random.Generator(np.random.SFC64([seed, zlib.crc32(self.name.encode())]))
        cols, rows = self.shape[-1], math.prod(self.shape[:-1])
        step = max(1, BLOCK // cols)
        for first in range(0, rows, step):
            block = random.random((min(step, rows - first), cols), dtype=np.float32)
            block -= 0.5
            block *= math.sqrt(12) * self.std
            block += self.mean
            if self.signs:
                block *= random.integers(0, 2, block.shape) * 2 - 1
            yield block


def matrix(name: str, *shape: int, std: float) -> Tensor:
    return Tensor(f"{name}.weight", shape, std, mean=0.0)


def norm(name: str, n: int, mean: float = 1.0, signs: bool = False) -> Tensor:
    return Tensor(f"{name}.weight", (n,), 0.1 * mean, mean, signs)


def tensors(arch: Arch, s: Shape) -> Iterator[Tensor]:
    """Every tensor of the model, in file order.

    Each matrix keeps a unit input at about unit size; what the 2 n_layer branches add has CONTEXT times the
    size of the embedding in all. A tied output would rate the last token highest: signs on its norm undo it.
    """
    unit = s.n_embd**-0.5
    embd = LOGIT_STD * unit if s.tied else 1.0
    seen = embd / unit if arch.embd_scaled else embd
    branch = seen * CONTEXT / math.sqrt(2 * s.n_layer)
    out = 1.0 if arch.post_norm else branch
    attention, kv = s.n_head * s.head_dim, s.n_head_kv * s.head_dim
    query = 1.0 if arch.qk_norm else ATTENTION_STD

    yield matrix("token_embd", s.n_vocab, s.n_embd, std=embd)
    yield norm("output_norm", s.n_embd, signs=s.tied)
    if not s.tied:
        yield matrix("output", s.n_vocab, s.n_embd, std=LOGIT_STD * unit)
    yield from rope_tensors(s)
    for i in range(s.n_layer):
        blk = f"blk.{i}."
        yield norm(blk + "attn_norm", s.n_embd)
        if arch.fused:  # one deviation for q and k, with the same product
            std = math.sqrt(ATTENTION_STD) * unit
            yield matrix(blk + "attn_qkv", attention + 2 * kv, s.n_embd, std=std)
        else:
            for part, n, std in (("q", attention, query * unit), ("k", kv, unit), ("v", kv, unit)):
                yield matrix(blk + f"attn_{part}", n, s.n_embd, std=std)
                if arch.qkv_bias:
                    yield Tensor(blk + f"attn_{part}.bias", (n,), 0.2, mean=0.0)
        if arch.qk_norm:
            yield norm(blk + "attn_q_norm", s.head_dim, ATTENTION_STD)
            yield norm(blk + "attn_k_norm", s.head_dim)
        # The mean of the values read has half a value's size, roughly; the gate's product 0.6.
        yield matrix(blk + "attn_output", s.n_embd, attention, std=2 * out / math.sqrt(attention))
        if arch.post_norm:
            yield norm(blk + "post_attention_norm", s.n_embd, branch)
        yield norm(blk + "ffn_norm", s.n_embd)
        down = out / 0.6 / math.sqrt(s.n_ff)
        if s.n_expert:
            # Wide logits: where two experts tie for the last place, neither weighs much.
            yield matrix(blk + "ffn_gate_inp", s.n_expert, s.n_embd, std=4 * unit)
            yield matrix(blk + "ffn_gate_exps", s.n_expert, s.n_ff, s.n_embd, std=unit)
            yield matrix(blk + "ffn_up_exps", s.n_expert, s.n_ff, s.n_embd, std=unit)
            yield matrix(blk + "ffn_down_exps", s.n_expert, s.n_embd, s.n_ff, std=down)
            continue
        if arch.fused:
            yield matrix(blk + "ffn_up", 2 * s.n_ff, s.n_embd, std=unit)
        else:
            yield matrix(blk + "ffn_gate", s.n_ff, s.n_embd, std=unit)
            yield matrix(blk + "ffn_up", s.n_ff, s.n_embd, std=unit)
        yield matrix(blk + "ffn_down", s.n_embd, s.n_ff, std=down)
        if arch.post_norm:
            yield norm(blk + "post_ffw_norm", s.n_embd, branch)


def rope_tensors(s: Shape) -> Iterator[Tensor]:
    """Frequency divisors [head_dim / 2] of the scalings that are stored as tensors."""
    half = s.head_dim // 2
    if s.rope_scaling == "llama3":
        wave = 2 * np.pi * s.rope_base ** (2 * np.arange(half) / s.head_dim)
        smooth = np.clip((original_length(s) / wave - 1) / (4 - 1), 0, 1)  # low_freq_factor 1, high 4
        values = 1 / ((1 - smooth) / s.rope_factor + smooth)
        yield Tensor("rope_freqs.weight", (half,), values=values.astype(np.float32))
    if s.rope_scaling == "longrope":
        long = s.rope_factor ** (np.arange(half) / max(1, half - 1))
        yield Tensor("rope_factors_long.weight", (half,), values=long.astype(np.float32))
        yield Tensor("rope_factors_short.weight", (half,), values=np.ones(half, np.float32))


def original_length(s: Shape) -> int:
    """The trained length before the file's RoPE scaling."""
    return s.n_ctx_train if s.rope_scaling == "none" else max(1, round(s.n_ctx_train / s.rope_factor))


# ---- keys --------------------------------------------------------------------------------------------------


def add_keys(writer: gguf.GGUFWriter, arch: Arch, s: Shape) -> None:
    """The keys of the shape, as a converter writes them."""
    writer.add_context_length(s.n_ctx_train)
    writer.add_embedding_length(s.n_embd)
    writer.add_block_count(s.n_layer)
    writer.add_feed_forward_length(s.n_ff)
    writer.add_head_count(s.n_head)
    writer.add_head_count_kv(s.n_head_kv)
    writer.add_key_length(s.head_dim)
    writer.add_value_length(s.head_dim)
    writer.add_layer_norm_rms_eps(s.rms_eps)
    writer.add_vocab_size(s.n_vocab)
    writer.add_rope_dimension_count(s.head_dim)
    writer.add_rope_freq_base(s.rope_base)
    if s.n_expert:
        writer.add_expert_count(s.n_expert)
        writer.add_expert_used_count(s.n_expert_used)
        if arch.key != "llama":
            writer.add_expert_feed_forward_length(s.n_ff)
    if s.sliding_window:
        writer.add_sliding_window(s.sliding_window)
        writer.add_sliding_window_pattern(s.sliding_pattern)
    if s.rope_scaling in ("linear", "yarn", "longrope"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(s.rope_scaling))
        writer.add_rope_scaling_orig_ctx_len(original_length(s))
    if s.rope_scaling in ("linear", "yarn"):
        writer.add_rope_scaling_factor(s.rope_factor)
    if s.rope_scaling == "longrope":
        magnitude = math.sqrt(1 + math.log(s.rope_factor) / math.log(max(2, original_length(s))))
        writer.add_rope_scaling_attn_factors(magnitude)


def add_tokenizer(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """A SentencePiece vocabulary: bytes for any text, letters, pairs of letters and so on, ChatML marks."""
    kinds = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, kinds.CONTROL, kinds.CONTROL]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    types += [kinds.BYTE] * 256
    tokens += itertools.islice(_pieces(), n_vocab - len(tokens))
    types += [kinds.NORMAL] * (len(tokens) - len(types))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0 if kind != kinds.NORMAL else -float(i) for i, kind in enumerate(types)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(4)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHATML)


def _pieces() -> Iterator[str]:
    letters = "etaoinshrdlcumwfgypbvkjxqz"
    yield "▁"
    yield from letters
    yield from (chr(code) for code in range(33, 127) if chr(code) not in letters)
    yield from ("▁" + letter for letter in letters)
    for length in itertools.count(2):
        yield from ("".join(word) for word in itertools.product(letters, repeat=length))


def copy_tokenizer(writer: gguf.GGUFWriter, source: str | os.PathLike[str]) -> int:
    """Copies every tokenizer.* key of another GGUF file; returns its number of tokens."""
    reader = gguf.GGUFReader(source)
    fields = {name: field for name, field in reader.fields.items() if name.startswith("tokenizer.")}
    if "tokenizer.ggml.tokens" not in fields:
        raise ShapeError(f"{source} has no tokenizer to copy")
    for name, field in fields.items():
        sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub)
    return len(fields["tokenizer.ggml.tokens"].data)


# ---- the file ----------------------------------------------------------------------------------------------


def write(
    path: str | os.PathLike[str],
    arch: str = "llama",
    *,
    preset: str = "",
    type: str = "f16",
    seed: int = 0,
    tokenizer_from: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **shape: Any,
) -> Shape:
    """Writes a random model and returns its shape.

    arch: a name of ARCHS. preset: a name of PRESETS, which says arch and shape. type: a name of TYPES, for
    the matrices; vectors are F32. shape: fields of Shape that differ from the architecture's (preset's) own.
    tokenizer_from: a GGUF whose vocabulary is taken, with its size. progress(done, total) counts bytes.
    Raises ShapeError when the numbers do not fit together, or a name is unknown.
    """
    if preset:
        arch, own = _choose("preset", preset, PRESETS)
        shape = {**own, **shape}
    kind, quant = _choose("arch", arch, ARCHS), _choose("type", type, TYPES)
    if unknown := set(shape).difference(field.name for field in dataclasses.fields(Shape)):
        raise ShapeError(f"unknown shape value {', '.join(sorted(unknown))}")
    writer = gguf.GGUFWriter(path, kind.key)
    if tokenizer_from is not None:
        shape["n_vocab"] = copy_tokenizer(writer, tokenizer_from)
    s: Shape = dataclasses.replace(kind.shape, **shape).settled(arch)
    if tokenizer_from is None:
        add_tokenizer(writer, s.n_vocab)
    # Not in the name: llama.cpp asks a model called phi3 for Phi's own tokens.
    writer.add_name(f"random weights, seed {seed}")
    writer.add_description(f"shape of {preset or arch}")
    writer.add_file_type(FILE_TYPES[type])
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
        for block in tensor.blocks(seed):
            done += file.write(gguf.quants.quantize(block, as_type).tobytes())
            if progress:
                progress(done, total)
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
    parser.add_argument("--preset", default="", help="a well-known shape: " + ", ".join(PRESETS))
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
