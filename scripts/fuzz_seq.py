"""Reads damaged files of kept sequences with real engines, as the disk cache and named sessions do.

    python scripts/fuzz_seq.py --count 2000 --seed 1

One to eight files of a folder have bytes, header, lengths, tokens or state changed, or their end cut off; half of the
changes get a new checksum, so that llama.cpp reads them. A child process opens an engine (the embedded model) over
the folder, lists and restores the sessions, and requests the text of each file. It must not end by a signal, take
longer than --limit seconds, or raise undocumented exceptions; a change without a new checksum must never change an
answer; and afterwards the engine must answer another text as before. Prints a table, then one JSON line; the exit
code is 1 if any of that fails. Such files are kept in --keep.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import struct
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fuzzing import campaign
from fuzzing.campaign import SCRATCH, Kept
from fuzzing.child import forked, probe_forked

from pyllama_long import filler, probe
from pyllama_long.engine import Engine, EngineConfig, Request, Sampling, Text, seqfile
from pyllama_long.errors import DecodeError

_TEXTS, _LENGTH, _MORE = 8, 96, 4  # files of a folder, tokens of a prompt, tokens of an answer
_GREEDY = Sampling(temperature=0)
_NUMBERS: tuple[object, ...] = (
    *(
        0,
        -1,
        1,
        2**27,
        2**31,
        2**32,
        2**48,
        2**63,
        1.5,
        1e308,
        float("nan"),
        float("inf"),
        True,
        None,
        "1",
        [],
        {},
    ),
)
_PATTERNS = (
    b"\xff\xff\xff\xff",
    b"\0\0\0\x80",
    b"\xff\xff\xff\x7f",
    b"\0\0\xc0\x7f",  # NaN of float32, and of two float16 in the next one
    b"\0\x7e\0\x7e",
    b"\0\x7c\0\x7c",
    b"\1\0\0\0",
    b"\0\0\0\0",
)
_KINDS = ("bytes", "cut", "longer", "header", "field", "tokens", "head of state", "state", "NaN everywhere")


@dataclass(frozen=True)
class Case:
    """A file of the folder with a change: sealed says that the checksum was made anew."""

    name: str
    kind: str
    sealed: bool
    data: bytes


def config(folder: Path) -> EngineConfig:
    path = Path(probe.__file__).with_name("data") / "demo.gguf"
    return EngineConfig(
        str(path),
        n_ctx=512,
        n_threads=1,
        rope="native",
        precision="f32",
        cache_ram=0,
        cache_disk=1 << 28,
        cache_dir=str(folder),
    )


def prompts(engine: Engine) -> list[list[int]]:
    """As many texts as there are files, and one more that no file holds."""
    ids = engine.tokenize(" ".join(filler.sentences()).encode())
    return [ids[_LENGTH * i : _LENGTH * (i + 1)] for i in range(2 * _TEXTS + 1)]


def ask(engine: Engine, prompt: list[int]) -> list[int]:
    """The ids of a greedy answer; none where the model gave no numbers."""
    handle = engine.submit(Request(prompt, _MORE, _GREEDY))
    try:
        return [token.id for event in handle if isinstance(event, Text) for token in event.tokens]
    except DecodeError:
        return []


def fill(folder: Path) -> str:
    """Files of _TEXTS cached texts and as many sessions; which text each file holds, and all answers, as JSON."""
    with Engine(config(folder)) as engine:
        texts = prompts(engine)
        answers = []
        for i, text in enumerate(texts):
            answers.append(ask(engine, text))
            if _TEXTS <= i < 2 * _TEXTS:
                engine.sessions.save(text, f"session {i}")
    for path in folder.glob("*.seq"):  # texts that a session holds, or the one that none is to hold
        if texts.index(seqfile.peek(path)[1].tolist()[:_LENGTH]) >= _TEXTS:
            path.unlink()
    held = {
        str(path.relative_to(folder)): texts.index(seqfile.peek(path)[1].tolist()[:_LENGTH])
        for path in (*folder.glob("*.seq"), *folder.glob("sessions/*.session"))
    }
    return json.dumps({"held": held, "answers": answers})


def damage(raw: bytes, kind: str, sealed: bool, rng: random.Random) -> bytes:
    """The bytes of a file with a change of a kind."""
    (length,) = struct.unpack_from("<I", raw, 8)
    header: dict[str, Any] = json.loads(raw[12 : 12 + length])
    tokens = 12 + length
    state = tokens + 4 * header["n_tokens"]
    end = len(raw) - 32
    data = bytearray(raw[:end])
    if kind == "header":
        data[8 + rng.randrange(4 + length)] = rng.randrange(256)
    elif kind == "field":
        if rng.random() < 0.3:  # sizes that fit the file, but not what is in it
            moved = rng.choice((-1, 1, 7, header["n_tokens"] - 1))
            header["n_tokens"] -= moved
            header["n_bytes"] += 4 * moved
        else:
            key = rng.choice(("factor", "n_tokens", "n_bytes", "created", "salt", "name", "model", "partial"))
            if rng.random() < 0.1:
                del header[key]
            else:
                header[key] = rng.choice(_NUMBERS)
        text = json.dumps(header).encode()
        data[8:tokens] = struct.pack("<I", len(text)) + text
    elif kind == "NaN everywhere":
        data[state + 512 :] = b"\0\x7e" * ((end - state - 512) // 2)
    elif kind in ("bytes", "tokens", "head of state", "state"):
        low, high = {
            "bytes": (0, end),
            "tokens": (tokens, state),
            "head of state": (state, min(end, state + 512)),
            "state": (state, end),
        }[kind]
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(low, high - 3)
            if kind != "bytes":
                at -= (at - low) % 4
            data[at : at + 4] = rng.choice(_PATTERNS)
    changed = bytes(data)
    changed += hashlib.sha256(changed).digest() if sealed else raw[end:]
    if kind == "cut":
        return changed[: rng.randrange(len(changed))]
    if kind == "longer":
        return changed + bytes(rng.choice((1, 32, 4096)))
    return changed


def read_back(folder: Path, cases: list[Case], known: dict[str, Any]) -> str:
    """In a child: an engine over the folder; what became of each file as JSON, or an AssertionError."""
    answers, held = known["answers"], known["held"]
    found = []
    with Engine(config(folder)) as engine:
        texts = prompts(engine)
        engine.sessions.list()
        for case in cases:
            i, refused = held[case.name], ""
            before = engine.stats().restored
            if case.name.startswith("sessions"):
                try:
                    engine.sessions.restore(f"session {i}")
                except (ValueError, KeyError) as error:
                    refused = str(error)
                    assert "\n" not in refused
            said = ask(engine, texts[i])
            used = engine.stats().restored > before
            assert said or case.sealed, case.kind
            if not said:  # its cells held no numbers: the copy is forgotten
                again = ask(engine, texts[i])
                assert again == answers[i], f"{case.kind}: {again} when asked again, not {answers[i]}"
            if not case.sealed:
                assert said == answers[i], f"{case.kind}: {said}, not {answers[i]}"
            found.append("used" if used else "refused" if refused else "not used")
        assert ask(engine, texts[-1]) == answers[-1], "the engine answers differently afterwards"
        engine.sessions.list()
    return json.dumps(found)


def fuzz(count: int, seed: int, limit: float, keep: Path) -> dict[str, Any]:
    rng, table, bad = random.Random(seed), Counter[tuple[str, bool, str]](), Kept(keep)
    probe._run = probe_forked
    with tempfile.TemporaryDirectory(dir=SCRATCH) as base:
        whole, folder = Path(base) / "whole", Path(base) / "damaged"
        how, said = forked(lambda: fill(whole), limit)
        if how != "ok":
            raise RuntimeError(f"no files to damage: {how}")
        known = json.loads(said)
        originals = {name: (whole / name).read_bytes() for name in sorted(known["held"])}
        if len(originals) != 2 * _TEXTS:
            raise RuntimeError(f"{len(originals)} files to damage, not {2 * _TEXTS}")

        def attempt(cases: list[Case]) -> tuple[str, str]:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(whole, folder)
            for case in cases:
                (folder / case.name).write_bytes(case.data)
            return forked(lambda: read_back(folder, cases, known), limit)

        untouched = [Case(name, "none", False, data) for name, data in originals.items()]
        how, said = attempt(untouched)
        if (how, set(json.loads(said or "[]"))) != ("ok", {"used"}):
            raise RuntimeError(f"undamaged files are not all used: {how} {said}")
        done = 0
        while done < count:
            cases = []
            for name in rng.sample(sorted(originals), min(rng.randint(1, 2 * _TEXTS), count - done)):
                kind, sealed = rng.choice(_KINDS), rng.random() < 0.5
                cases.append(Case(name, kind, sealed, damage(originals[name], kind, sealed, rng)))
            done += len(cases)
            how, said = attempt(cases)
            if how == "ok":
                for case, result in zip(cases, json.loads(said), strict=True):
                    table[case.kind, case.sealed, result] += 1
                continue
            before = len(bad.lines)
            for case in cases:  # which of them it was
                how, said = attempt([case])
                table[case.kind, case.sealed, how if how != "ok" else json.loads(said)[0]] += 1
                if how != "ok":
                    what = json.dumps(asdict(case) | {"data": len(case.data)})
                    bad.keep(f"{seed}-{done}-{Path(case.name).name}", case.data, f"{how} {what}")
            if len(bad.lines) == before:
                bad.note(f"{len(cases)} files together: {how}")
    for (kind, sealed, result), n in sorted(table.items()):
        print(f"{kind:15} {'sealed' if sealed else '':6} {result:10} {n}")
    return {
        "files": count,
        "used": sum(n for (_, _, r), n in table.items() if r == "used"),
        "bad": len(bad.lines),
    }


def main(argv: list[str] | None = None) -> int:
    args = campaign.parser(__file__, __doc__ or "", 2000, 60.0, "folder").parse_args(argv)
    return campaign.run(args.seed, lambda: fuzz(args.count, args.seed, args.limit, args.keep))


if __name__ == "__main__":
    sys.exit(main())
