"""The llama architecture as functions of named tensors.

Tensors are named as in GGUF, matrices are [out, in]. Rotary pairs lie half a head apart (export.py puts them side by
side, as llama.cpp wants). The output is tied to the token embedding.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from train_demo import dilated
from train_demo.errors import TrainError, need

Params = dict[str, Any]  # name -> tensor


class Far(NamedTuple):
    """A sequence read as if it were part of one `copies` times as long, under ReRoPE positions and log-n.

    Keys more than `window` back have distance `window` (ReRoPE); each of them that is not kept counts `copies`
    times, as filler of a longer text would; queries are multiplied with ln(copies n) / ln(n). window, copies:
    [batch]; kept: [batch, n].
    """

    window: Any
    copies: Any
    kept: Any


class Tables(NamedTuple):
    """What every layer needs besides its weights.

    cos, sin of every position's angles: [n, head_dim / 2]. reads: what dilated attention adds to the logits,
    [1, n_head, n, n]; None for attention that reads every key.
    """

    cos: Any
    sin: Any
    reads: Any = None


@dataclass(frozen=True)
class Config:
    """Shape of the model; the defaults: the embedded demo model before its vocabulary grew, 5.2M parameters.

    segments, rates: the branches of dilated attention; without them every key is read.
    """

    n_vocab: int = 3072
    n_layer: int = 6
    n_embd: int = 256
    n_head: int = 4
    n_head_kv: int = 2
    n_ff: int = 704
    n_ctx: int = 512
    rope_base: float = 10000.0
    rms_eps: float = 1e-5
    segments: tuple[int, ...] = ()
    rates: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head or self.n_head % self.n_head_kv or self.head_dim % 2:
            raise TrainError(
                "n_embd must be a multiple of n_head, n_head of n_head_kv, and heads of even size"
            )
        if self.n_embd % 32 or self.n_ff % 32:
            raise TrainError("n_embd and n_ff must be multiples of 32, the block of the type Q8_0")
        if self.n_ctx < 128:
            raise TrainError("n_ctx must be at least 128: the tasks need that many tokens")
        dilated.check(self.segments, self.rates, self.n_ctx)

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape, in file order."""
    kv = c.n_head_kv * c.head_dim
    out: dict[str, tuple[int, ...]] = {"token_embd": (c.n_vocab, c.n_embd), "output_norm": (c.n_embd,)}
    for i in range(c.n_layer):
        block = {
            "attn_norm": (c.n_embd,),
            "ffn_norm": (c.n_embd,),
            "attn_q": (c.n_embd, c.n_embd),
            "attn_k": (kv, c.n_embd),
            "attn_v": (kv, c.n_embd),
            "attn_output": (c.n_embd, c.n_embd),
            "ffn_gate": (c.n_ff, c.n_embd),
            "ffn_up": (c.n_ff, c.n_embd),
            "ffn_down": (c.n_embd, c.n_ff),
        }
        out |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    return out


def make_tables(c: Config, n: int, device: str = "cpu") -> Tables:
    """The tables of positions 0 .. n."""
    torch = need("torch", "2.9")
    theta = c.rope_base ** (-torch.arange(0, c.head_dim, 2).float() / c.head_dim)
    angle = torch.arange(n).float()[:, None] * theta
    reads = None
    if c.segments:
        counts = dilated.log_counts(c.segments, c.rates, c.n_head, c.n_head_kv, n)
        reads = torch.from_numpy(counts)[None].to(device)
    return Tables(angle.cos().to(device), angle.sin().to(device), reads)


def forward(p: Params, ids: Any, tables: Tables, c: Config, far: Far | None = None) -> Any:
    """Logits [batch, n, n_vocab] of tokens ids [batch, n]. far is for attention that reads every key."""
    import torch  # torch.compile does not see through need()

    f = torch.nn.functional
    batch, n = ids.shape
    here = tables.cos[:n], tables.sin[:n]
    reads = None if tables.reads is None else tables.reads[:, :, :n, :n]

    def norm(x: Any, name: str) -> Any:
        return f.rms_norm(x, (x.shape[-1],), p[name], c.rms_eps)

    def heads(x: Any, name: str) -> Any:  # [batch, heads, n, head_dim]
        return f.linear(x, p[name]).view(batch, n, -1, c.head_dim).transpose(1, 2)

    def share(x: Any) -> Any:  # [batch, kv heads, ...] -> [batch, heads, ...]
        return x.repeat_interleave(c.n_head // c.n_head_kv, 1)

    if far is not None:
        place = torch.arange(n, device=ids.device)
        distance = place[:, None] - place
        away = (distance > far.window[:, None, None])[:, None]  # [batch, 1, n, n]
        counted = (away & ~far.kept[:, None, None, :]) * far.copies.log()[:, None, None, None]
        bias = counted.masked_fill(distance < 0, -math.inf)
        sharper = 1 + far.copies.log() / math.log(n)
        scale = (sharper / math.sqrt(c.head_dim))[:, None, None, None]
        there = tuple(table[far.window][:, None, None, :] for table in (tables.cos, tables.sin))

    x = f.embedding(ids, p["token_embd"])
    for i in range(c.n_layer):
        blk = f"blk.{i}."
        h = norm(x, blk + "attn_norm")
        q, k, v = (heads(h, blk + name) for name in ("attn_q", "attn_k", "attn_v"))
        if far is None:
            read = f.scaled_dot_product_attention(
                rotate(q, here), share(rotate(k, here)), share(v), reads, is_causal=reads is None
            )
        else:
            near = rotate(q, here) @ share(rotate(k, here)).transpose(-1, -2)
            beyond = rotate(q, there) @ share(k).transpose(-1, -2)
            logits = torch.where(away, beyond, near) * scale + bias
            read = logits.softmax(-1).to(v.dtype) @ share(v)
        x = x + f.linear(read.transpose(1, 2).reshape(batch, n, -1), p[blk + "attn_output"])
        h = norm(x, blk + "ffn_norm")
        gated = f.silu(f.linear(h, p[blk + "ffn_gate"])) * f.linear(h, p[blk + "ffn_up"])
        x = x + f.linear(gated, p[blk + "ffn_down"])
    return f.linear(norm(x, "output_norm"), p["token_embd"])


def rotate(x: Any, tables: tuple[Any, Any]) -> Any:
    """Rotates the pairs (i, i + head_dim / 2) of x [..., n, head_dim] by cos and sin [..., n, head_dim / 2]."""
    import torch  # torch.compile does not see through need()

    cos, sin = (table.to(x.dtype) for table in tables)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def initial(c: Config, seed: int = 0) -> Params:
    """Trainable tensors: small noise, and the structure below if the shape has room for it."""
    torch = need("torch", "2.9")
    g = torch.Generator().manual_seed(seed)
    p: Params = {}
    for name, shape in shapes(c).items():
        last = name.endswith(("attn_output", "ffn_down"))
        std = 0.02 / (math.sqrt(2 * c.n_layer) if last else 1)
        p[name] = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=g) * std
    if has_structure(c):
        _add_structure(p, c, g)
    return {name: tensor.requires_grad_() for name, tensor in p.items()}


def has_structure(c: Config) -> bool:
    """Whether the structured start fits: room for four heads in the embedding, and enough heads and layers."""
    return c.n_embd >= 4 * c.head_dim and c.n_head >= 2 and c.n_layer >= 3 and c.head_dim >= 8


def _add_structure(p: Params, c: Config, g: Any) -> None:
    """Two heads of the first layer read the token one and two places back and write its identity, projected,
    into a subspace of its own; heads of later layers compare the current token with that subspace and copy what they
    find. This circuit answers questions about the context; from noise alone it does not form within 2M tokens. All of
    it is trained further."""
    torch = need("torch", "2.9")
    d, hd = c.n_embd, c.head_dim
    embd = torch.randn(p["token_embd"].shape, generator=g)
    embd[:, 1:] *= 0.32 / embd[:, 1:].norm(dim=-1, keepdim=True)
    embd[:, 0] = 0.12  # the same for every token: positional heads attend to it
    p["token_embd"].copy_(embd)
    constant = (0.12 / (embd.pow(2).mean(-1) + c.rms_eps).sqrt()).mean().item()

    same = torch.linalg.qr(torch.randn(d - 1, 2 * hd, generator=g))[0].T  # orthonormal rows [2 hd, d - 1]
    rest = torch.randn(d - 1, 2 * hd, generator=g)
    other = torch.linalg.qr(rest - same.T @ (same @ rest))[0].T  # orthogonal to `same`
    now, later = same[:hd], same[hd:]
    before, before2 = other[:hd], other[hd:]

    second = (
        max(1, c.n_head // c.n_head_kv) if c.n_head_kv > 1 else 1
    )  # a head of another kv head if there is one
    n_fast = max(1, 10 * hd // 64)  # the fastest rotations distinguish neighbouring places
    fast = torch.arange(n_fast)
    theta = c.rope_base ** (-2.0 * fast / hd)
    q, k, v, o = (p[f"blk.0.{name}"] for name in ("attn_q", "attn_k", "attn_v", "attn_output"))
    sharp = 9.0 * (64 / hd) ** 0.25
    for head, back in ((0, 1), (second, 2)):
        rows = torch.zeros(hd, d)
        rows[fast, 0] = sharp * torch.cos(theta * -back) / constant
        rows[hd // 2 + fast, 0] = sharp * torch.sin(theta * -back) / constant
        q[head * hd : (head + 1) * hd] = rows + torch.randn(hd, d, generator=g) * 0.004
    for kv in range(min(2, c.n_head_kv)):
        rows = torch.zeros(hd, d)
        rows[fast, 0] = sharp / constant
        k[kv * hd : (kv + 1) * hd] = rows + torch.randn(hd, d, generator=g) * 0.004
        v[kv * hd : (kv + 1) * hd, 1:] = now * 0.25
    o[1:, :hd] = before.T * 0.12
    o[1:, second * hd : (second + 1) * hd] = before2.T * 0.08

    slow = torch.cat(
        [torch.arange(hd // 4, hd // 2), torch.arange(3 * hd // 4, hd)]
    )  # hardly rotated by distance
    for layer in (2, 3)[: c.n_layer - 2]:
        q, k, v, o = (p[f"blk.{layer}.{name}"] for name in ("attn_q", "attn_k", "attn_v", "attn_output"))
        q[slow, 1:] = now[: hd // 2] * 2.0
        k[slow, 1:] = before[: hd // 2] * 2.0
        if layer == 3:
            q[hd + slow, 1:] = now[: hd // 2] * 1.0
        v[:hd, 1:] = later * 0.5
        o[1:, :hd] = later.T * 0.2
