"""Peak memory of a long prefill: the op without a mask, and upstream's attention with one, in processes of their own.

    python scripts/bench_memory.py [--tokens 65536] [-m MODEL]
    python scripts/bench_memory.py --like gemma3,gpt-oss

--like: random models of two small layers with the attention of an architecture, one with a sliding window and one
without. Prints a table per model, then one JSON line: {"tokens", "models": [{"model", "mask_bytes", "rows": [{side,
peak_bytes, seconds}], "saved_bytes"}]}. mask_bytes is the size of the n_kv x n_ubatch masks in half precision that
upstream fills for the last chunk: of a model with windows, one for each kind of layer.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHUNK = 512  # n_ubatch
LIKE: dict[str, dict[str, Any]] = {
    arch: {
        "n_layer": 2,
        "n_embd": 64,
        "n_head": 2,
        "n_head_kv": 1,
        "head_dim": 64,
        "n_ff": 64,
        "sliding_pattern": 2,
    }
    for arch in ("gemma3", "gpt-oss")
}
SIDES = {"upstream": "upstream", "ours": "exact"}


def prefill(model: str, tokens: int, attention: str) -> tuple[int, float]:
    """(peak resident bytes of this process, seconds)."""
    import numpy as np

    from pyllama_long import LongLlama

    llm = LongLlama(model, n_ctx=tokens, attention=attention, rope="native", n_batch=CHUNK)
    ids = np.random.default_rng(0).integers(300, llm.n_vocab(), tokens).tolist()
    start = time.perf_counter()
    llm.eval(ids)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024), seconds


def measure(model: str, tokens: int, attention: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", attention, "--tokens", str(tokens), "-m", model]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return row


def compare(name: str, model: str, tokens: int) -> dict[str, Any]:
    """Both sides of a model, printed and as a part of the JSON line."""
    found = {side: measure(model, tokens, attention) for side, attention in SIDES.items()}
    mask = tokens * CHUNK * 2 * (2 if name in LIKE else 1)
    print(f"{name}\n{'side':10}{'peak MiB':>10}{'seconds':>10}{'tokens/s':>10}")
    for side, row in found.items():
        rate = tokens / row["seconds"]
        print(f"{side:10}{row['peak_bytes'] / 2**20:10.1f}{row['seconds']:10.1f}{rate:10.0f}")
    saved = found["upstream"]["peak_bytes"] - found["ours"]["peak_bytes"]
    print(f"saved {saved / 2**20:.1f} MiB; the masks take {mask / 2**20:.1f} MiB", flush=True)
    rows = [{"side": side, **row} for side, row in found.items()]
    return {"model": name, "mask_bytes": mask, "rows": rows, "saved_bytes": saved}


def main() -> None:
    import make_random_gguf

    import pyllama_long

    embedded = Path(pyllama_long.__file__).parent / "data" / "demo.gguf"
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=65536, help="length of the prefill")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "-m", "--model", default=str(embedded), help="GGUF file; the embedded model by default"
    )
    which.add_argument("--like", default="", help=f"random models instead: {','.join(LIKE)}")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        peak, seconds = prefill(options.model, options.tokens, options.side)
        print(json.dumps({"peak_bytes": peak, "seconds": round(seconds, 2)}))
        return
    names = [name for name in options.like.split(",") if name]
    if wrong := set(names).difference(LIKE):
        parser.error(f"unknown --like {', '.join(wrong)}; known: {', '.join(LIKE)}")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = Path(folder, f"{name}.gguf")
            make_random_gguf.write(path, name, **LIKE[name])
            found.append(compare(name, str(path), options.tokens))
    if not names:
        found.append(compare(Path(options.model).stem, options.model, options.tokens))
    print(json.dumps({"tokens": options.tokens, "models": found}))


if __name__ == "__main__":
    main()
