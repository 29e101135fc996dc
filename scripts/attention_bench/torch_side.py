"""torch's scaled_dot_product_attention on the same numbers: bf16 directly from the cache, f32 from a copy."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
from cases import Array

from attention_bench.graphs import Graphs, Side
from attention_bench.workloads import N_HEAD, N_HEAD_KV, D


def importable() -> bool:
    return importlib.util.find_spec("torch") is not None


def sides(graphs: Graphs, n_threads: int) -> list[Side]:
    """The sides for a bf16 cache with one sequence. The query heads of a KV head are torch's heads and KV heads are
    its batch, so that K and V are not copied for the heads that share them."""
    workload = graphs.workload
    if not workload.exact or workload.kv_type != "bf16" or graphs.n_seq != 1 or workload.case.v_in_k:
        return []
    return [_side(graphs, name, n_threads) for name in ("bf16", "f32")]


def _side(graphs: Graphs, name: str, n_threads: int) -> Side:
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(n_threads)
    dtype = torch.bfloat16 if name == "bf16" else torch.float32
    group = N_HEAD // N_HEAD_KV
    one = graphs.batches[0].layouts[0]
    n_keys = len(one.pos)  # without the free cells after them
    q = torch.from_numpy(graphs.view(graphs.q, np.float32)).view(graphs.n_new, N_HEAD_KV, group, D)
    q = q.permute(1, 2, 0, 3).to(dtype).contiguous()
    k, v = (
        torch.from_numpy(graphs.view(tensor, np.int16))
        .view(torch.bfloat16)
        .view(graphs.n_kv, N_HEAD_KV, 1, D)[:n_keys]
        .permute(1, 2, 0, 3)
        .to(dtype)
        .expand(-1, group, -1, -1)
        for tensor in (graphs.k, graphs.v)
    )
    mask = None
    if graphs.n_new > 1:
        visible = torch.from_numpy(one.pos)[None] <= torch.from_numpy(one.q_pos)[:, None]
        mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)
    out: list[Any] = []

    def run() -> None:
        with torch.inference_mode():
            out[:] = [torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)]

    def output() -> Array:
        found: Array = out[0].permute(2, 0, 1, 3).reshape(graphs.n_new, N_HEAD, D).float().numpy()
        return found

    return Side(f"torch {name}", None, run, output, kv_type=name)
