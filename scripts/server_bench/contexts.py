"""Makes contexts of a length without computing them: cells are filled with copies, and saved in the form of either
server.

Speed depends on positions, not on the contents of the cells. It runs in a process of its own, since its engine cannot
be used afterwards.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from context_bench.fill import fill

from pyllama_long import _native
from pyllama_long._native import llama_cpp as C
from pyllama_long.engine import Engine, EngineConfig, Request, Sampling, seqfile

BLOCK = 1024  # tokens that are computed
SALT = "public"  # the salt of requests to a server without keys


def save(model: str, folder: str, depth: int, streams: int) -> None:
    """Saves `streams` contexts of at least `depth` tokens as sessions stream-0 .., and the first as slot.bin. Prints
    the number of tokens of each."""
    n = -(-depth // BLOCK) * BLOCK
    config = EngineConfig(
        model, n_ctx=n + 2 * BLOCK, n_parallel=2, attention="exact", rope="native", cache_dir=folder
    )
    engine = Engine(config)
    text = tokens(engine.n_vocab, n, 0)
    list(engine.submit(Request(text[:BLOCK], 1, Sampling(temperature=0), salt=SALT)))
    engine.sessions.save(text[:BLOCK], "seed", SALT)
    path = engine.sessions._path("seed", SALT)
    header, _, _ = seqfile.read(path)
    path.unlink()

    def make() -> bytes:
        ctx, memory = engine._context.ctx, C.llama_get_memory(engine._context.ctx)
        for seq in range(1, engine._context.n_seq):
            C.llama_memory_seq_rm(memory, seq, -1, -1)
        C.llama_memory_seq_rm(memory, 0, BLOCK, -1)
        if fill(ctx, n) != n:
            raise RuntimeError("this model's cache cannot be filled")
        data = np.empty(C.llama_state_seq_get_size(ctx, 0), np.uint8)
        size = C.llama_state_seq_get_data(ctx, _native.byte_pointer(data), len(data), 0)
        ids = (C.llama_token * n)(*text)
        path = Path(folder) / "slot.bin"
        C.llama_state_seq_save_file(ctx, os.fsencode(path), 0, ids, n)
        as_of_slots(path, n, streams)
        return data[:size].tobytes()

    state = np.frombuffer(engine._loop.call(make), np.uint8)
    for i in range(streams):
        name = f"stream-{i}"
        header = replace(header, n_tokens=n, n_bytes=len(state), created=time.time(), name=name)
        ids = np.array(tokens(engine.n_vocab, n, i), np.int32)
        seqfile.write(engine.sessions._path(name, SALT), header, ids, state)
    print(json.dumps({"tokens": n}), flush=True)
    os._exit(0)  # the engine does not know the contents of its cells


def as_of_slots(path: Path, n: int, slots: int) -> None:
    """Rewrites a file of a context whose sequences share one cache for llama-server, which has a cache per slot: it
    counts the caches, and all but the first are empty."""
    head = 12 + 4 * n  # magic, version, number of tokens, tokens
    with path.open("r+b") as file:
        file.seek(head)
        if struct.unpack("<II", file.read(8)) != (1, n):
            raise RuntimeError("a saved context does not begin as expected")
        file.seek(head)
        file.write(struct.pack("<I", slots))
        file.seek(0, os.SEEK_END)
        file.write(bytes(4 * (slots - 1)))


def tokens(n_vocab: int, n: int, stream: int) -> list[int]:
    """Ordinary tokens; each stream's are its own from the first on."""
    found = np.random.default_rng(stream).integers(min(300, n_vocab // 2), n_vocab - 300, n)
    return [int(token) for token in found]


if __name__ == "__main__":
    save(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
