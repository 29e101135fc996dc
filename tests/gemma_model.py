"""Gemma 3 and 4 in float64 NumPy: window layers beside full ones, and layers that read the K and V of another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import reference

from pyllama_long.plan import AttentionPlan
from pyllama_long.rope import RopePolicy

Array = npt.NDArray[Any]
WINDOW_BASE = 1e4  # of the RoPE of window layers
OUTPUT_CAP = 30.0  # of Gemma 4, if its file does not say another


class Gemma:
    """The weights of a file of make_random_gguf.py, of type f32."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.weights = {t.name.removesuffix(".weight"): t.data.astype(np.float64) for t in reader.tensors}
        self.keys = {name: field.contents() for name, field in reader.fields.items()}
        self.arch = str(self.keys["general.architecture"])
        self.n_layer, self.n_window = self.key("block_count"), self.key("attention.sliding_window")
        pattern = self.key("attention.sliding_window_pattern")
        windows = pattern if isinstance(pattern, list) else [(i + 1) % pattern for i in range(self.n_layer)]
        self.windows = [bool(w) for w in windows]
        self.shared = int(self.keys.get(f"{self.arch}.attention.shared_kv_layers", 0))

    def key(self, name: str) -> Any:
        return self.keys[f"{self.arch}.{name}"]

    def logits(self, tokens: list[int], policy: RopePolicy) -> Array:
        """[n, n_vocab], with the policy in the full layers only."""
        w, kept = self.weights, {}
        x = w["token_embd"][tokens] * np.sqrt(self.key("embedding_length"))
        for i in range(self.n_layer):
            blk = f"blk.{i}."
            h = norm(x, w[blk + "attn_norm"])
            dim = len(w[blk + "attn_q_norm"])
            q = norm(heads(h @ w[blk + "attn_q"].T, dim), w[blk + "attn_q_norm"])
            if i < self.n_layer - self.shared:
                k = heads(h @ w[blk + "attn_k"].T, dim)
                v = heads(h @ w[blk + "attn_v"].T, dim) if blk + "attn_v" in w else k
                kept[self.windows[i]] = (
                    norm(k, w[blk + "attn_k_norm"]),
                    norm(v, 1.0) if self.arch == "gemma4" else v,
                )
            a = self.attention(i, q, *kept[self.windows[i]], policy)
            x = x + norm(a @ w[blk + "attn_output"].T, w[blk + "post_attention_norm"])
            h = norm(x, w[blk + "ffn_norm"])
            h = (gelu(h @ w[blk + "ffn_gate"].T) * (h @ w[blk + "ffn_up"].T)) @ w[blk + "ffn_down"].T
            x = x + norm(h, w[blk + "post_ffw_norm"])
        out = np.asarray(norm(x, w["output_norm"]) @ w["token_embd"].T)
        return OUTPUT_CAP * np.tanh(out / OUTPUT_CAP) if self.arch == "gemma4" else out

    def attention(self, i: int, q: Array, k: Array, v: Array, policy: RopePolicy) -> Array:
        """[n, n_head * d]"""
        at, d = np.arange(len(q)), q.shape[-1]
        base, own, plan = (
            float(self.key("rope.freq_base")),
            self.weights.get("rope_freqs", np.ones(d // 2)),
            "exact",
        )
        if self.windows[i]:
            base, own, plan = WINDOW_BASE, np.ones(d // 2), f"window({self.n_window})"
            policy = RopePolicy(n_train=policy.n_train)
        freqs, magnitude = reference.rope_freqs(policy, d, base)
        scale = 1.0 if self.arch == "gemma4" else d**-0.5
        parsed = AttentionPlan.parse(plan)
        out = reference.attention(
            q, k, v, at, at, np.zeros(len(q)), parsed, policy, scale, freqs / own, magnitude, d, True
        )
        return out.reshape(len(q), -1)


def heads(x: Array, dim: int) -> Array:
    return x.reshape(len(x), -1, dim)


def norm(x: Array, weight: Array | float) -> Array:
    return np.asarray(x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5) * weight)


def gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))
