"""Peak memory of a long prefill: the op without a mask, and upstream's attention with one, in processes of their own.

    python scripts/bench_memory.py [--tokens 65536] [-m MODEL]

Prints a table, then one JSON line: {"tokens", "mask_bytes", "rows": [{side, peak_bytes, seconds}], "saved_bytes"}.
mask_bytes is the size of the n_kv x n_ubatch mask in half precision that upstream fills for the last chunk.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

CHUNK = 512  # n_ubatch
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


def main() -> None:
    import pyllama_long

    embedded = Path(pyllama_long.__file__).parent / "data" / "demo.gguf"
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=65536, help="length of the prefill")
    parser.add_argument(
        "-m", "--model", default=str(embedded), help="GGUF file; the embedded model by default"
    )
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        peak, seconds = prefill(options.model, options.tokens, options.side)
        print(json.dumps({"peak_bytes": peak, "seconds": round(seconds, 2)}))
        return
    found = {side: measure(options.model, options.tokens, attention) for side, attention in SIDES.items()}
    mask = options.tokens * CHUNK * 2
    print(f"{'side':10}{'peak MiB':>10}{'seconds':>10}{'tokens/s':>10}")
    for side, row in found.items():
        rate = options.tokens / row["seconds"]
        print(f"{side:10}{row['peak_bytes'] / 2**20:10.1f}{row['seconds']:10.1f}{rate:10.0f}")
    saved = found["upstream"]["peak_bytes"] - found["ours"]["peak_bytes"]
    print(f"saved {saved / 2**20:.1f} MiB; the mask takes {mask / 2**20:.1f} MiB")
    rows = [{"side": side, **row} for side, row in found.items()]
    print(json.dumps({"tokens": options.tokens, "mask_bytes": mask, "rows": rows, "saved_bytes": saved}))


if __name__ == "__main__":
    main()
