"""Every tensor of a model, and its random values, made block by block.

Matrices are scaled so that a model behaves like a trained one in what matters for comparing programs: ATTENTION_STD
and LOGIT_STD are the standard deviations of attention and output logits.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from random_gguf.shapes import Arch, Shape

Array = NDArray[np.float32]

BLOCK = 1 << 22  # weights made at a time
ATTENTION_STD = 2.5
LOGIT_STD = 3.0
CONV_TOKENS = 4  # tokens that a convolution sees
STATE_SIZE = 16  # values of a state space model per channel
STREAMS, LAUREL_RANK, LAYER_INPUT = 4, 64, 256  # of Gemma 3n, as llama.cpp has them
CONTEXT = 1.5  # size of everything that the layers add, relative to the embedding


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
        """A matrix in the model's type; others stay in F32."""
        return len(self.shape) > 1 and not any(
            part in self.name
            for part in ("ffn_gate_inp", "conv", "ssm_a", "ssm_x", "ssm_dt", ".bias", "coef", "router")
        )

    def blocks(self, seed: int) -> Iterator[Array]:
        """Yields the values in order, as matrices of whole rows with at most about BLOCK values each."""
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


def bias(name: str, *shape: int) -> Tensor:
    return Tensor(f"{name}.bias", shape, 0.1, mean=0.0)


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
    query = 1.0 if arch.qk_norm else ATTENTION_STD

    yield matrix("token_embd", s.n_vocab, s.n_embd, std=embd)
    yield norm("token_embd_norm" if arch.key == "lfm2" else "output_norm", s.n_embd, signs=s.tied)
    if not s.tied:
        yield matrix("output", s.n_vocab, s.n_embd, std=LOGIT_STD * unit)
    yield from rope_tensors(arch, s)
    if arch.altup:
        yield from streams(s)
    for i, heads_kv in enumerate(arch.heads_kv(s)):
        blk = f"blk.{i}."
        shares = i >= s.n_layer - s.n_shared
        if arch.altup:
            yield from stream_layer(blk, s, branch)
        whole = arch.full_heads and not arch.windowed(s, i)
        head_dim = s.head_dim_full if whole else s.head_dim
        attention = s.n_head * (s.head_dim_v if s.kv_rank else head_dim)
        kv = (s.n_head_kv_full if whole else s.n_head_kv) * head_dim
        yield norm(blk + "attn_norm", s.n_embd)
        if arch.state == "ssm":
            yield from state_space(blk, s, branch)
            continue
        if not heads_kv and arch.state == "delta":
            yield from delta_net(blk, s, branch)
        elif not heads_kv:
            yield from convolution(blk, s, branch)
        elif s.kv_rank:
            yield from latent_attention(blk, s)
        elif arch.fused:  # the same deviation for q and k, with the wanted product
            std = math.sqrt(ATTENTION_STD) * unit
            yield matrix(blk + "attn_qkv", attention + 2 * kv, s.n_embd, std=std)
        else:
            queries = attention * (1 + arch.attention_gate)
            for part, n, std in (("q", queries, query * unit), ("k", kv, unit), ("v", kv, unit)):
                if (whole and part == "v") or (shares and part != "q"):
                    continue
                yield matrix(blk + f"attn_{part}", n, s.n_embd, std=std)
                if arch.qkv_bias:
                    yield Tensor(blk + f"attn_{part}.bias", (n,), 0.2, mean=0.0)
        if heads_kv and arch.qk_norm:
            yield norm(
                blk + "attn_q_norm", head_dim, ATTENTION_STD * (head_dim**-0.5 if arch.unscaled else 1)
            )
            if not shares:
                yield norm(blk + "attn_k_norm", head_dim)
        if heads_kv:
            # The mean of the values read has roughly half the size of one value; the gate's product 0.6.
            yield matrix(blk + "attn_output", s.n_embd, attention, std=2 * out / math.sqrt(attention))
            if arch.biases:
                yield bias(blk + "attn_output", s.n_embd)
            if arch.sinks:  # such a logit weighs as much as some of the largest
                yield Tensor(blk + "attn_sinks.weight", (s.n_head,), 1.0, mean=2 * ATTENTION_STD)
        if arch.post_norm:
            yield norm(blk + "post_attention_norm", s.n_embd, branch)
        yield norm(blk + arch.ffn_norm, s.n_embd)
        n_ff = s.n_ff_dense or s.n_ff if i < s.n_dense else s.n_ff
        down = out / 0.6 / math.sqrt(n_ff)
        if i >= s.n_dense:
            yield from experts(blk, arch, s, down)
            continue
        if arch.fused or not arch.gated:
            yield matrix(blk + "ffn_up", (1 + arch.gated) * n_ff, s.n_embd, std=unit)
        else:
            yield matrix(blk + "ffn_gate", n_ff, s.n_embd, std=unit)
            yield matrix(blk + "ffn_up", n_ff, s.n_embd, std=unit)
        yield matrix(blk + "ffn_down", s.n_embd, n_ff, std=down)
        if arch.post_norm:
            yield norm(blk + "post_ffw_norm", s.n_embd, branch)


def experts(blk: str, arch: Arch, s: Shape, down: float) -> Iterator[Tensor]:
    """The feed-forward of a layer with experts."""
    unit = s.n_embd**-0.5
    # Wide logits, so that if two experts tie for the last place, neither weighs much.
    yield matrix(blk + "ffn_gate_inp", s.n_expert, s.n_embd, std=4 * unit)
    yield matrix(blk + "ffn_gate_exps", s.n_expert, s.n_ff, s.n_embd, std=unit)
    yield matrix(blk + "ffn_up_exps", s.n_expert, s.n_ff, s.n_embd, std=unit)
    yield matrix(blk + "ffn_down_exps", s.n_expert, s.n_embd, s.n_ff, std=down)
    if arch.biases:
        yield bias(blk + "ffn_gate_inp", s.n_expert)
        yield bias(blk + "ffn_gate_exps", s.n_expert, s.n_ff)
        yield bias(blk + "ffn_up_exps", s.n_expert, s.n_ff)
        yield bias(blk + "ffn_down_exps", s.n_expert, s.n_embd)
    if s.kv_rank:  # and one that every token takes
        yield matrix(blk + "ffn_gate_shexp", s.n_ff, s.n_embd, std=unit)
        yield matrix(blk + "ffn_up_shexp", s.n_ff, s.n_embd, std=unit)
        yield matrix(blk + "ffn_down_shexp", s.n_embd, s.n_ff, std=down)


def latent_attention(blk: str, s: Shape) -> Iterator[Tensor]:
    """The tensors of multi-head latent attention before its output (DeepSeek-V2, arXiv 2405.04434), by which q has the
    wanted deviation, k and v one of 1."""
    unit = s.n_embd**-0.5
    yield matrix(blk + "attn_q_a", s.q_rank, s.n_embd, std=unit)
    yield norm(blk + "attn_q_a_norm", s.q_rank)
    yield matrix(blk + "attn_q_b", s.n_head * s.head_dim, s.q_rank, std=ATTENTION_STD * s.q_rank**-0.5)
    yield matrix(blk + "attn_kv_a_mqa", s.kv_rank + s.n_rot, s.n_embd, std=unit)
    yield norm(blk + "attn_kv_a_norm", s.kv_rank)
    yield matrix(blk + "attn_k_b", s.n_head, s.kv_rank, s.head_dim - s.n_rot, std=s.kv_rank**-0.5)
    yield matrix(blk + "attn_v_b", s.n_head, s.head_dim_v, s.kv_rank, std=s.kv_rank**-0.5)


def convolution(blk: str, s: Shape, out: float) -> Iterator[Tensor]:
    """The tensors of a layer that mixes the last CONV_TOKENS tokens."""
    unit = s.n_embd**-0.5
    yield matrix(blk + "shortconv.conv", s.n_embd, CONV_TOKENS, std=CONV_TOKENS**-0.5)
    yield matrix(blk + "shortconv.in_proj", 3 * s.n_embd, s.n_embd, std=unit)
    yield matrix(blk + "shortconv.out_proj", s.n_embd, s.n_embd, std=out * unit)


def delta_net(blk: str, s: Shape, out: float) -> Iterator[Tensor]:
    """The tensors of a gated delta net."""
    unit, keys, values = s.n_embd**-0.5, s.delta_k * s.delta_dim, s.delta_v * s.delta_dim
    yield matrix(blk + "attn_qkv", 2 * keys + values, s.n_embd, std=unit)
    yield matrix(blk + "attn_gate", values, s.n_embd, std=unit)
    yield matrix(blk + "ssm_conv1d", 2 * keys + values, CONV_TOKENS, std=CONV_TOKENS**-0.5)
    yield Tensor(blk + "ssm_dt.bias", (s.delta_v,), 1.0, mean=-3.0)
    yield Tensor(blk + "ssm_a", (s.delta_v,), 0.3, mean=-1.0)
    yield matrix(blk + "ssm_beta", s.delta_v, s.n_embd, std=unit)
    yield matrix(blk + "ssm_alpha", s.delta_v, s.n_embd, std=unit)
    yield norm(blk + "ssm_norm", s.delta_dim)
    yield matrix(blk + "ssm_out", s.n_embd, values, std=2 * out * values**-0.5)


def state_space(blk: str, s: Shape, out: float) -> Iterator[Tensor]:
    """The tensors of a Mamba layer, whose state forgets within about 10 to 1,000 tokens."""
    inner, rank, unit = 2 * s.n_embd, s.n_embd // 16, s.n_embd**-0.5
    yield matrix(blk + "ssm_in", 2 * inner, s.n_embd, std=unit)
    yield matrix(blk + "ssm_conv1d", inner, CONV_TOKENS, std=CONV_TOKENS**-0.5)
    yield Tensor(blk + "ssm_conv1d.bias", (inner,), 0.1, mean=0.0)
    yield matrix(blk + "ssm_x", rank + 2 * STATE_SIZE, inner, std=2 * inner**-0.5)
    yield matrix(blk + "ssm_dt", inner, rank, std=rank**-0.5)
    yield Tensor(blk + "ssm_dt.bias", (inner,), 1.0, mean=-3.0)
    yield Tensor(blk + "ssm_a", (inner, STATE_SIZE), 0.3, mean=-0.6)
    yield Tensor(blk + "ssm_d", (inner,), 0.1, mean=1.0)
    yield matrix(blk + "ssm_out", s.n_embd, inner, std=3 * out * inner**-0.5)


def streams(s: Shape) -> Iterator[Tensor]:
    """What Gemma 3n has once: the other streams, and each layer's own embedding of the tokens."""
    unit = s.n_embd**-0.5
    for name in ("altup_proj", "altup_unembd_proj"):
        yield matrix(name, STREAMS - 1, s.n_embd, s.n_embd, std=unit)
    yield matrix("per_layer_token_embd", s.n_vocab, LAYER_INPUT * s.n_layer, std=LAYER_INPUT**-0.5)
    yield matrix("per_layer_model_proj", LAYER_INPUT * s.n_layer, s.n_embd, std=unit)
    yield norm("per_layer_proj_norm", LAYER_INPUT)


def stream_layer(blk: str, s: Shape, out: float) -> Iterator[Tensor]:
    """What each layer of Gemma 3n has besides: the mixing of the streams, and a branch of low rank."""
    unit = s.n_embd**-0.5
    yield matrix(blk + "altup_router", STREAMS, s.n_embd, std=1.0)
    yield norm(blk + "altup_router_norm", s.n_embd)
    yield matrix(blk + "altup_predict_coef", STREAMS * STREAMS, STREAMS, std=0.3)
    yield matrix(blk + "altup_correct_coef", STREAMS, STREAMS, std=0.3)
    yield norm(blk + "altup_correct_scale", s.n_embd)
    yield matrix(blk + "laurel_l", LAUREL_RANK, s.n_embd, std=unit)
    yield matrix(blk + "laurel_r", s.n_embd, LAUREL_RANK, std=LAUREL_RANK**-0.5)
    yield norm(blk + "laurel_post_norm", s.n_embd, out)
    yield matrix(blk + "inp_gate", LAYER_INPUT, s.n_embd, std=unit)
    yield matrix(blk + "proj", s.n_embd, LAYER_INPUT, std=LAYER_INPUT**-0.5)
    yield norm(blk + "post_norm", s.n_embd, out)


def rope_tensors(arch: Arch, s: Shape) -> Iterator[Tensor]:
    """Frequency divisors [head_dim / 2] of the scalings that are stored as tensors."""
    if arch.full_heads:  # a quarter of the pairs of layers without a window is rotated
        pairs = s.head_dim_full // 2
        quarter = np.where(np.arange(pairs) < pairs // 4, 1, 1e30).astype(np.float32)
        yield Tensor("rope_freqs.weight", (pairs,), values=quarter)
        return
    half = s.head_dim // 2
    if s.rope_scaling == "llama3":
        wave = 2 * np.pi * s.rope_base ** (2 * np.arange(half) / s.head_dim)
        smooth = np.clip((s.n_ctx_original / wave - 1) / (4 - 1), 0, 1)  # low_freq_factor 1, high 4
        values = 1 / ((1 - smooth) / s.rope_factor + smooth)
        yield Tensor("rope_freqs.weight", (half,), values=values.astype(np.float32))
    if s.rope_scaling == "longrope":
        long = s.rope_factor ** (np.arange(half) / max(1, half - 1))
        yield Tensor("rope_factors_long.weight", (half,), values=long.astype(np.float32))
        yield Tensor("rope_factors_short.weight", (half,), values=np.ones(half, np.float32))
