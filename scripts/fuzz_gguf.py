"""Loads damaged GGUF files and saved states, each in a process of its own, in the way that users load them.

    python scripts/fuzz_gguf.py --count 20000 --states 2000 --seed 1

A file is a small random model with one to three values changed: keys (value, type, missing, doubled), tensor
infos, raw bytes, or its end. Each must load and decode, or end in an error of one line, without a signal and within
--limit seconds. States come from save_state, with bytes, lengths or NaN changed. Prints a table, then one JSON line;
the exit code is 1 if a process ended by a signal or took too long. Such files are kept in --keep.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from fuzzing import campaign
from fuzzing.campaign import SCRATCH, Kept
from fuzzing.child import forked, probe_forked
from fuzzing.gguf import Model, mutate
from make_random_gguf import ARCHS, write

from pyllama_long import LongLlama, probe


def load(path: str) -> str:
    """Loads and decodes as a user does; the error's text, or ok."""
    warnings.simplefilter("ignore")
    try:
        llm = LongLlama(path, n_ctx=256, n_threads=1, n_threads_batch=1)
        llm.eval([1, 2, 3])
        llm.eval([4])
        llm.close()
    except (ValueError, RuntimeError, OverflowError, MemoryError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    return "ok"


def fuzz_files(count: int, seed: int, limit: float, keep: Path) -> dict[str, Any]:
    rng, table, bad = random.Random(seed), Counter[tuple[str, str]](), Kept(keep)
    reasons = Counter[str]()
    probe._run = probe_forked
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        models = []
        for arch in ARCHS:
            path = Path(folder) / "model.gguf"
            try:
                write(path, arch, n_layer=2, n_embd=64, n_head=4, n_vocab=288, n_ctx_train=256)
            except ValueError:
                write(path, arch)
            models.append((arch, ARCHS[arch].key, Model(path.read_bytes())))
        path = Path(folder) / "damaged.gguf"
        for i in range(count):
            name, key, model = models[i % len(models)]
            kind, data = mutate(model, key, rng)
            path.write_bytes(data)
            how, said = forked(lambda: load(str(path)), limit)
            clean = how == "ok" and bool(said.strip()) and "\n" not in said.strip()
            result = (
                ("loads" if said == "ok" else "error") if clean else how if how != "ok" else "says nothing"
            )
            table[kind, result] += 1
            if "llama.cpp cannot take" in said:
                reasons[said.partition("in the file (")[2][:90]] += 1
            if result not in ("loads", "error"):
                bad.keep(f"{seed}-{i}-{name}-{kind}.gguf", data, f"{how} {said[:300]}")
    for (kind, result), n in sorted(table.items()):
        print(f"{kind:8} {result:14} {n}")
    for reason, n in reasons.most_common(40):
        print(f"{n:6} ended the child: {reason}")
    ended = sum(reasons.values())
    return {
        "files": count,
        "loads": sum(n for (_, r), n in table.items() if r == "loads"),
        "ended_child": ended,
        "bad": len(bad.lines),
    }


def fuzz_states(count: int, seed: int, limit: float) -> dict[str, Any]:
    rng, table = random.Random(seed), Counter[str]()
    path = Path(probe.__file__).with_name("data") / "demo.gguf"
    llm = LongLlama(str(path), n_ctx=256, n_threads=1, n_threads_batch=1)
    llm.eval(list(range(1, 60)))
    state = llm.save_state()
    raw = bytes(state.llama_state)

    def work(data: bytes) -> str:
        state.llama_state, state.llama_state_size = data, len(data)
        llm = LongLlama(str(path), n_ctx=256, n_threads=1, n_threads_batch=1)  # one does not outlive a fork
        try:
            llm.load_state(state)
            llm.eval([1, 2])
            llm.sample()
        except (ValueError, RuntimeError) as error:
            return f"error: {error}"
        return "loads"

    if forked(lambda: work(raw), limit) != ("ok", "loads"):
        raise RuntimeError("the state does not load before it is damaged")
    for _ in range(count):
        data = bytearray(raw)
        what = rng.randrange(5)
        if what == 0:
            data = data[: rng.randrange(len(data))]
        else:
            low = len(data) if what == 1 else 4096
            for _ in range(rng.choice((1, 2, 8))):
                at = rng.randrange(0, min(low, len(data)) - 4)
                width = 2 if what == 4 else 4
                values = (
                    b"\xff\xff\xff\xff",
                    b"\0\0\0\x80",
                    b"\xff\xff\xff\x7f",
                    b"\0\x7e\0\x7e",
                    b"\1\0\0\0",
                )
                data[at : at + width] = rng.choice(values)[:width]
        how, said = forked(lambda data=bytes(data): work(data), limit)  # type: ignore[misc]
        table[said.partition(":")[0] if how == "ok" else how] += 1
    for result, n in sorted(table.items()):
        print(f"state    {result:14} {n}")
    return {"states": count, "bad_states": sum(n for r, n in table.items() if r not in ("loads", "error"))}


def main(argv: list[str] | None = None) -> int:
    parser = campaign.parser(__file__, __doc__ or "", 20000, 70.0, "file")
    parser.add_argument("--states", type=int, default=2000)
    args = parser.parse_args(argv)
    os.environ["GGML_NO_BACKTRACE"] = "1"  # gdb takes a second for each

    def work() -> dict[str, Any]:
        files = fuzz_files(args.count, args.seed, args.limit, args.keep) if args.count else {}
        return files | (fuzz_states(args.states, args.seed, args.limit) if args.states else {})

    return campaign.run(args.seed, work)


if __name__ == "__main__":
    sys.exit(main())
