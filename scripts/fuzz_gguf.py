"""Damaged GGUF files and saved states, each loaded in a process of its own, the way that users load them.

    python scripts/fuzz_gguf.py --count 20000 --states 2000 --seed 1

A file is a small random model with one to three values changed: keys (value, type, missing, doubled), tensor
infos, raw bytes, or its end. Each must load and decode, or give one line of error: no signal, and no longer than
--limit seconds. States are what save_state gives, with bytes, lengths or NaN changed. Prints a table, then one JSON
line; exit code 1 when a process ended by a signal or took too long. Files that do are kept in --keep.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from make_random_gguf import ARCHS, write

from pyllama_long import LongLlama, log, probe
from pyllama_long._native import llama_cpp

_INTEGERS = (0, 1, 2, 3, 7, 16, 255, 4096, 2**31 - 1, 2**31, 2**32 - 1)
_FLOATS = (0.0, -1.0, 1e-45, 1e-30, 1e30, float("nan"), float("inf"), float("-inf"))
_TEXTS = (
    b"",
    b"foo",
    b"none",
    b"yarn",
    b"longrope",
    b"gpt-4o",
    b"llama-bpe",
    b"\xff\xfe",
    b"{{ 1 }}",
    b"a" * 3000,
)
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_FORMS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<B",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_EXTRA = (
    "rope.scaling.type rope.scaling.factor rope.scale_linear rope.scaling.original_context_length "
    "rope.dimension_count_swa rope.freq_base_swa rope.dimension_sections attention.sliding_window "
    "attention.sliding_window_pattern attention.chunk_size attention.logit_softcapping attention.max_alibi_bias "
    "attention.key_length_swa attention.key_length_mla attention.kv_lora_rank attention.dilated.segment_lengths "
    "attention.dilated.rates attention.shared_kv_layers attention.causal pooling_type expert_count expert_used_count "
    "expert_shared_count expert_group_count leading_dense_block_count nextn_predict_layers ssm.conv_kernel "
    "ssm.state_size ssm.inner_size ssm.group_count ssm.time_step_rank logit_scale"
).split()


class Entry:
    """A key of a GGUF: its place in the header's bytes, and the type and bytes of its value."""

    def __init__(self, key: bytes, kind: int, value: bytes) -> None:
        self.key, self.kind, self.value = key, kind, value

    def raw(self) -> bytes:
        return struct.pack("<Q", len(self.key)) + self.key + struct.pack("<I", self.kind) + self.value


class Model:
    """A GGUF taken apart into its keys, tensor infos and data."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 8
        n_tensors, n_keys = self.number("<Q"), self.number("<Q")
        self.entries = [self.entry() for _ in range(n_keys)]
        self.infos = [self.info() for _ in range(n_tensors)]
        self.rest = data[-(-self.at // 32) * 32 :]

    def number(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def text(self) -> bytes:
        n = self.number("<Q")
        self.at += n
        return self.data[self.at - n : self.at]

    def entry(self) -> Entry:
        key, kind = self.text(), self.number("<I")
        begin = self.at
        self.skip(kind)
        return Entry(key, kind, self.data[begin : self.at])

    def skip(self, kind: int) -> None:
        if kind == 8:
            self.text()
        elif kind == 9:
            inner, n = self.number("<I"), self.number("<Q")
            for _ in range(n):
                self.skip(inner)
        else:
            self.at += _SIZES[kind]

    def info(self) -> list[Any]:
        name, n_dims = self.text(), self.number("<I")
        return [name, [self.number("<Q") for _ in range(n_dims)], self.number("<I"), self.number("<Q")]

    def raw(self, entries: Sequence[Entry], infos: Sequence[list[Any]]) -> bytes:
        head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(entries)) + b"".join(e.raw() for e in entries)
        for name, dims, kind, offset in infos:
            head += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(dims))
            head += b"".join(struct.pack("<Q", d) for d in dims) + struct.pack("<IQ", kind, offset)
        return head + bytes(-len(head) % 32) + self.rest


def value_of(kind: int, rng: random.Random) -> bytes:
    """Bytes of an extreme value of a gguf_type."""
    if kind == 8:
        text = rng.choice(_TEXTS)
        return struct.pack("<Q", len(text)) + text
    if kind == 9:
        inner, n = rng.choice((4, 5, 6, 7, 8, 10)), rng.choice((0, 1, 2, 4, 5, 600))
        return struct.pack("<IQ", inner, n) + b"".join(value_of(inner, rng) for _ in range(n))
    form = _FORMS[kind]
    if kind in (6, 12):
        return struct.pack(form, rng.choice(_FLOATS))
    size = struct.calcsize(form)
    return (rng.choice(_INTEGERS) % (1 << 8 * size)).to_bytes(size, "little")


def mutate(model: Model, arch: str, rng: random.Random) -> tuple[str, bytes]:
    """The kind of a change, and the file with it."""
    entries, infos = list(model.entries), copy.deepcopy(model.infos)
    kind = rng.choices(
        ("value", "type", "missing", "extra", "double", "tensor", "bytes", "cut"), (8, 2, 1, 5, 1, 3, 2, 1)
    )[0]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        i = rng.randrange(len(entries))
        old = entries[i]
        if kind == "value":
            entries[i] = Entry(old.key, old.kind, value_of(old.kind, rng))
        elif kind == "type":
            other = rng.choice((*_SIZES, 8, 9))
            entries[i] = Entry(old.key, other, value_of(other, rng))
        elif kind == "missing":
            del entries[i]
        elif kind == "double":
            entries.append(old)
        elif kind == "extra":
            key = rng.choice(
                ("general.alignment", "tokenizer.ggml.add_bos_token", *(f"{arch}.{k}" for k in _EXTRA))
            )
            entries = [e for e in entries if e.key != key.encode()]
            other = 8 if key.endswith("type") and rng.random() < 0.8 else rng.choice((4, 4, 4, 6, 8, 9))
            entries.append(Entry(key.encode(), other, value_of(other, rng)))
        elif kind == "tensor":
            info = rng.choice(infos)
            what = rng.randrange(4)
            if what == 0:
                info[1][rng.randrange(len(info[1]))] = rng.choice((0, 1, 2, 32, 2**31, 2**40, 2**63))
            elif what == 1:
                info[2] = rng.choice((*range(42), 1000))
            elif what == 2:
                info[3] = rng.choice((0, 1, 32, 2**40, 2**63, 2**64 - 32))
            else:
                info[0] = rng.choice(infos)[0]
    data = model.raw(entries, infos)
    head = len(data) - len(model.rest)
    if kind == "bytes":
        changed = bytearray(data)
        for _ in range(rng.choice((1, 2, 8))):
            changed[rng.randrange(4, head)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        data = bytes(changed)
    elif kind == "cut":
        data = data[: rng.randrange(len(data))]
    return kind, data


def forked(function: Callable[[], str], limit: float) -> tuple[str, str]:
    """Runs a function in a child process; (how it ended, what it returned). How: ok, exit N, SIGNAL or hang."""
    read, written = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        code = 3
        try:
            with os.fdopen(written, "w") as out:
                out.write(function())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(written)
    deadline, status = time.monotonic() + limit, 0
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(read)
            return "hang", ""
        time.sleep(0.001)
    with os.fdopen(read, errors="replace") as pipe:
        said = pipe.read()
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name, said
    return ("ok" if os.WEXITSTATUS(status) == 0 else f"exit {os.WEXITSTATUS(status)}"), said


def probe_forked(path: str, asked: dict[str, Any]) -> probe.Probed:
    """What probe._run does, in a fork of this process in place of a new one: the same limits and the same call."""
    from pyllama_long import _probe_child

    folder = tempfile.mkdtemp()
    err = os.path.join(folder, "stderr")

    def work() -> str:
        fd = os.open(err, os.O_WRONLY | os.O_CREAT)
        os.dup2(fd, 2)
        _probe_child.limit()
        return json.dumps(_probe_child.answer(llama_cpp.llama_cpp._lib, asked))

    how, said = forked(work, 60)
    complaint = Path(err).read_bytes() if os.path.exists(err) else b""
    if os.path.exists(err):
        os.unlink(err)
    os.rmdir(folder)
    code = 0 if how == "ok" else -int(getattr(signal, how)) if how.startswith("SIG") else 1
    return probe.conclude(path, -int(signal.SIGXCPU) if how == "hang" else code, said.encode(), complaint)


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
    rng, table, bad = random.Random(seed), Counter[tuple[str, str]](), list[str]()
    reasons = Counter[str]()
    probe._run = probe_forked
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
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
                keep.mkdir(parents=True, exist_ok=True)
                kept = keep / f"{seed}-{i}-{name}-{kind}.gguf"
                kept.write_bytes(data)
                bad.append(f"{kept}: {how} {said[:300]}")
                print(bad[-1], flush=True)
    for (kind, result), n in sorted(table.items()):
        print(f"{kind:8} {result:14} {n}")
    for reason, n in reasons.most_common(40):
        print(f"{n:6} ended the child: {reason}")
    ended = sum(reasons.values())
    return {
        "files": count,
        "loads": sum(n for (_, r), n in table.items() if r == "loads"),
        "ended_child": ended,
        "bad": len(bad),
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--states", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=70.0, help="seconds for one file")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz_gguf")
    args = parser.parse_args(argv)
    log.install(False)
    os.environ["GGML_NO_BACKTRACE"] = "1"  # gdb takes a second for each
    start = time.monotonic()
    report: dict[str, Any] = {"seed": args.seed}
    if args.count:
        report |= fuzz_files(args.count, args.seed, args.limit, args.keep)
    if args.states:
        report |= fuzz_states(args.states, args.seed, args.limit)
    report["seconds"] = round(time.monotonic() - start)
    print(json.dumps(report))
    return int(report.get("bad", 0) + report.get("bad_states", 0) > 0)


if __name__ == "__main__":
    sys.exit(main())
