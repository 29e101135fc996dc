"""The numbers of a model, what each architecture has besides the common parts, and well-known shapes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

DELTA_PERIOD = 4  # every fourth layer has attention, the others a gated delta net
SCALINGS = ("none", "linear", "yarn", "llama3", "longrope")


class ShapeError(ValueError):
    """A shape that the architecture cannot have; the message is one line that says which numbers do not fit."""


@dataclass(frozen=True)
class Shape:
    """The numbers of a model; 0 means: derived, or absent."""

    n_layer: int = 4
    n_embd: int = 256
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 0  # n_embd / n_head
    n_rot: int = 0  # head_dim; if less, only the first dims of a head are rotated
    kv_rank: int = 0  # multi-head latent attention: the size of what K and V of all heads are made from
    q_rank: int = 0  # the same for queries
    head_dim_v: int = 0  # of a value, there; head_dim
    n_ff: int = 0  # about 8/3 n_embd; if there are experts, the size of one
    n_ff_dense: int = 0  # of a first layer without experts, there
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
    n_shared: int = 0  # the last layers, which read the K and V of an earlier one
    head_dim_full: int = 0  # of layers without a window, if it differs
    n_head_kv_full: int = 0
    delta_k: int = 0  # n_head_kv: key heads of a gated delta net
    delta_v: int = 0  # n_head: its value heads
    delta_dim: int = 32  # dims of its heads
    tied: bool = False  # the output uses the token embedding

    def settled(self, arch: str) -> Shape:
        """The shape with the derived numbers filled in. Raises ShapeError."""
        head_dim = self.head_dim or self.n_embd // max(1, self.n_head)
        full = dataclasses.replace(
            self,
            head_dim=head_dim,
            n_rot=self.n_rot or (head_dim // 4 * 2 if self.kv_rank else head_dim),
            head_dim_v=self.head_dim_v or head_dim,
            n_ff=self.n_ff or -(-self.n_embd * 8 // 3 // 64) * 64,
            head_dim_full=self.head_dim_full or head_dim,
            n_head_kv_full=self.n_head_kv_full or self.n_head_kv,
            delta_k=self.delta_k or self.n_head_kv,
            delta_v=self.delta_v or self.n_head,
        )
        checks = {
            "n_head must be a multiple of n_head_kv": full.n_head % max(1, full.n_head_kv) == 0,
            "n_head must be a multiple of n_head_kv_full": full.n_head % max(1, full.n_head_kv_full) == 0,
            "delta_v must be a multiple of delta_k": full.delta_v % max(1, full.delta_k) == 0,
            "n_embd and n_ff must be multiples of 32": full.n_embd % 32 == 0 == full.n_ff % 32,
            "n_head * head_dim must be a multiple of 32": full.n_head * full.head_dim % 32 == 0,
            "head_dim must be even": full.head_dim % 2 == 0,
            "n_rot must be even and at most head_dim": 0 < full.n_rot <= full.head_dim
            and full.n_rot % 2 == 0,
            "n_rot must be below head_dim and q_rank positive with latent attention": not full.kv_rank
            or (full.n_rot < full.head_dim and full.q_rank > 0),
            f"{arch} needs head_dim = n_embd / n_head": arch not in ("qwen2", "qwen2vl", "phi3")
            or full.n_head * full.head_dim == full.n_embd,
            "n_expert_used must be at most n_expert": not full.n_expert
            or full.n_expert_used <= full.n_expert,
            "n_vocab must be at least 261": full.n_vocab >= 261,
            f"rope_scaling must be one of {', '.join(SCALINGS)}": full.rope_scaling in SCALINGS,
            "rope_factor must be at least 1": full.rope_factor >= 1,
            "n_layer - n_shared must be a multiple of sliding_pattern": not full.n_shared
            or (
                0 < full.sliding_pattern <= full.n_layer - full.n_shared
                and (full.n_layer - full.n_shared) % full.sliding_pattern == 0
            ),
        }
        numbers = (full.n_layer, full.n_embd, full.n_head, full.n_head_kv, full.n_ctx_train)
        checks["n_layer, n_embd, n_head, n_head_kv and n_ctx_train must be positive"] = min(numbers) > 0
        for what, holds in checks.items():
            if not holds:
                raise ShapeError(what)
        return full

    @property
    def n_dense(self) -> int:
        """Layers before the first one with experts."""
        return self.n_layer if not self.n_expert else min(1, self.n_ff_dense)

    @property
    def n_ctx_original(self) -> int:
        """The trained length before the file's RoPE scaling."""
        factor = 1.0 if self.rope_scaling == "none" else self.rope_factor
        return max(1, round(self.n_ctx_train / factor))


@dataclass(frozen=True)
class Arch:
    """What a GGUF architecture has besides the common parts."""

    key: str  # general.architecture
    shape: Shape = dataclasses.field(default_factory=Shape)
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norm: bool = False
    fused: bool = False  # one tensor for q, k, v and one for gate and up
    gated: bool = True  # the feed-forward has a gate
    max_bias: float = 0.0  # ALiBi's, in place of RoPE
    sections: tuple[float, ...] = ()  # M-RoPE: the share of pairs that each of a token's positions rotates
    embd_scaled: bool = False  # the graph multiplies the embedding by sqrt(n_embd)
    state: str = (
        ""  # layers that keep a state in place of keys: conv, every second; delta, three of four; ssm, all
    )
    attention_gate: bool = False  # the query projection also gives a gate of what the attention reads
    ffn_norm: str = "ffn_norm"  # the norm before the feed-forward
    sinks: bool = False  # a logit per head that only takes part in the denominator
    caps: tuple[float, ...] = ()  # of attention logits and of output logits
    biases: bool = False  # of every matrix but those of the embedding and the output
    unscaled: bool = False  # attention logits are not divided by sqrt(head_dim)
    full_heads: bool = (
        False  # layers without a window have heads of their own shape, whose values are their keys
    )
    altup: bool = False  # several streams of which a layer reads one, and inputs per layer

    def heads_kv(self, s: Shape) -> list[int]:
        """K and V heads of each layer, 0 where it keeps a state."""
        period = {"ssm": 1, "conv": 2, "delta": DELTA_PERIOD}.get(self.state, 0)
        if self.full_heads:
            return [s.n_head_kv if self.windowed(s, i) else s.n_head_kv_full for i in range(s.n_layer)]
        stateful = [period == 1 or (period > 0 and (i + 1) % period != 0) for i in range(s.n_layer)]
        return [0 if keeps else s.n_head_kv for keeps in stateful]

    def windowed(self, s: Shape, layer: int) -> bool:
        """Whether a layer has a sliding window."""
        return s.sliding_window > 0 and (s.sliding_pattern == 0 or (layer + 1) % s.sliding_pattern != 0)


ARCHS = {
    "llama": Arch("llama"),
    "mistral": Arch("llama", Shape(n_head=8, n_head_kv=2, head_dim=32, rope_base=1e6)),
    "mixtral": Arch("llama", Shape(n_expert=8, rope_base=1e6)),
    "qwen2": Arch("qwen2", Shape(rope_base=1e6, tied=True), qkv_bias=True),
    "qwen3": Arch("qwen3", Shape(head_dim=128, rope_base=1e6), qk_norm=True),
    "qwen3moe": Arch("qwen3moe", Shape(head_dim=128, n_ff=192, rope_base=1e6, n_expert=8), qk_norm=True),
    "qwen2vl": Arch("qwen2vl", Shape(rope_base=1e6), qkv_bias=True, sections=(1 / 4, 3 / 8, 3 / 8)),
    "qwen3vl": Arch(
        "qwen3vl", Shape(head_dim=128, rope_base=5e6), qk_norm=True, sections=(3 / 8, 5 / 16, 5 / 16)
    ),
    "qwen35": Arch(
        "qwen35",
        Shape(head_dim=64, rope_base=1e7, tied=True),
        qk_norm=True,
        attention_gate=True,
        sections=(3 / 8, 3 / 8, 1 / 4),
        state="delta",
        ffn_norm="post_attention_norm",
    ),
    "gemma3": Arch(
        "gemma3",
        Shape(n_layer=7, rope_base=1e6, sliding_window=64, tied=True),
        qk_norm=True,
        post_norm=True,
        embd_scaled=True,
    ),
    "gemma3n": Arch(  # its layers from the 21st on read the keys of the 19th and the 20th
        "gemma3n",
        Shape(
            n_layer=25,
            n_embd=64,
            n_head=2,
            n_head_kv=1,
            rope_base=1e6,
            sliding_window=64,
            sliding_pattern=5,
            tied=True,
        ),
        qk_norm=True,
        post_norm=True,
        embd_scaled=True,
        unscaled=True,
        altup=True,
    ),
    "gemma4": Arch(
        "gemma4",
        Shape(
            n_layer=7,
            head_dim=64,
            head_dim_full=128,
            n_head_kv_full=1,
            rope_base=1e6,
            sliding_window=64,
            tied=True,
        ),
        qk_norm=True,
        post_norm=True,
        embd_scaled=True,
        unscaled=True,
        full_heads=True,
    ),
    "gemma2": Arch(
        "gemma2",
        Shape(sliding_window=64, sliding_pattern=2, tied=True),
        post_norm=True,
        embd_scaled=True,
        caps=(50.0, 30.0),
    ),
    "gpt-oss": Arch(
        "gpt-oss",
        Shape(n_ff=192, rope_base=150000.0, n_expert=8, sliding_window=64, sliding_pattern=2),
        qkv_bias=True,
        ffn_norm="post_attention_norm",
        sinks=True,
        biases=True,
    ),
    "deepseek2": Arch("deepseek2", Shape(n_head_kv=1, kv_rank=128, q_rank=96, rope_base=1e6)),
    "phi3": Arch("phi3", fused=True),
    "mpt": Arch("mpt", fused=True, gated=False, max_bias=8.0),
    "lfm2": Arch("lfm2", Shape(rope_base=1e6), qk_norm=True, state="conv"),
    "mamba": Arch("mamba", state="ssm"),
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

# Shapes like those of today's models, with fewer layers and experts, so that a file has at most 2.5 GB in q8_0. Layers,
# embedding and output are of the full size. Big matrices repeat a random block, so that they are made quickly.
LIKE: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3.5-4b": (  # 8 of 32 layers
        "qwen35",
        {
            "n_layer": 8,
            "n_embd": 2560,
            "n_head": 16,
            "n_head_kv": 4,
            "head_dim": 256,
            "n_rot": 64,
            "n_ff": 9216,
        }
        | {"delta_k": 16, "delta_v": 32, "delta_dim": 128, "n_vocab": 248320, "n_ctx_train": 262144},
    ),
    "gpt-oss-20b": (  # 6 of 24 layers, 4 of 32 experts, all of which a token uses, as it does of 32
        "gpt-oss",
        {"n_layer": 6, "n_embd": 2880, "n_head": 64, "n_head_kv": 8, "head_dim": 64, "n_ff": 2880}
        | {"n_expert": 4, "n_expert_used": 4, "n_vocab": 201088, "n_ctx_train": 131072, "sliding_window": 128}
        | {"rope_scaling": "yarn", "rope_factor": 32.0},
    ),
    "gemma-4-12b": (  # 6 of 48 layers, of which the last is full
        "gemma4",
        {"n_layer": 6, "n_embd": 3840, "n_head": 16, "n_head_kv": 8, "head_dim": 256, "head_dim_full": 512}
        | {
            "n_head_kv_full": 2,
            "n_ff": 15360,
            "n_vocab": 262144,
            "n_ctx_train": 262144,
            "sliding_window": 1024,
        },
    ),
    "glm-4.7-flash": (  # 8 of 47 layers, 8 of 64 experts
        "deepseek2",
        {"n_layer": 8, "n_embd": 2048, "n_head": 20, "n_head_kv": 1, "head_dim": 256, "n_rot": 64}
        | {
            "kv_rank": 512,
            "q_rank": 768,
            "n_ff": 1536,
            "n_ff_dense": 10240,
            "n_expert": 8,
            "n_expert_used": 4,
        }
        | {"n_vocab": 154880, "n_ctx_train": 202752, "rope_base": 1e6},
    ),
}
PRESETS |= LIKE
