"""The process that tries a model file out, and that the file may crash: `python -I -S _probe_child.py LIBRARY`.

Reads one JSON object from stdin and writes one to stdout. It imports nothing of the package and only ctypes, so that
it starts in some ten milliseconds. llama.cpp's warnings and errors go to stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
from ctypes import CFUNCTYPE, POINTER, c_char, c_char_p, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from typing import Any

LENGTHS, TEXT, LAYERS = 8, 512, 65536  # PLONG_PROBE_*
CPU_SECONDS = 20
MAX_MEMORY = 8 << 30  # bytes; no weights are loaded here
_WARN, _CONT = 3, 5  # ggml_log_level


def main(library: str) -> None:
    limit()
    asked = json.load(sys.stdin)
    report = answer(ctypes.CDLL(library), asked)
    json.dump(report, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # everything has been reported, and freeing it takes time


def limit() -> None:
    """Limits the time and memory that a file can make this process use."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for name, most in (
        ("RLIMIT_CPU", CPU_SECONDS),
        ("RLIMIT_DATA", MAX_MEMORY),
        ("RLIMIT_CORE", 0),
    ):
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        _, hard = resource.getrlimit(kind)
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with contextlib.suppress(OSError, ValueError):  # a system that only has the name
            resource.setrlimit(kind, (soft, hard))


def answer(lib: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """The report of plong_llama_probe. asked: path and lora as hex of their bytes, context and overrides as hex of
    llama_context_params and an array of llama_model_kv_override, lengths in tokens."""
    context = bytes.fromhex(asked["context"])

    class Probe(ctypes.Structure):
        _fields_ = [
            ("path", c_char_p),
            ("lora", c_char_p),
            ("overrides", c_void_p),
            ("context", c_uint64 * (len(context) // 8)),
            ("n_lengths", c_int32),
            ("lengths", c_uint32 * LENGTHS),
        ]

    class Probed(ctypes.Structure):
        _fields_ = [
            ("memory", c_int64 * LENGTHS),
            ("no_scaling", c_char * TEXT),
            ("no_map", c_char * TEXT),
            ("error", c_char * TEXT),
            ("layers", c_char * LAYERS),
        ]

    last = [0]

    @CFUNCTYPE(None, c_int32, c_char_p, c_void_p)  # type: ignore[untyped-decorator]
    def log(level: int, text: bytes, _data: object) -> None:
        last[0] = last[0] if level == _CONT else level
        if last[0] >= _WARN:
            os.write(2, text)

    lib.llama_log_set.argtypes, lib.llama_log_set.restype = [type(log), c_void_p], None
    lib.llama_log_set(log, None)
    lib.llama_backend_init()
    function = lib.plong_llama_probe
    function.argtypes, function.restype = [POINTER(Probe), POINTER(Probed)], c_int32

    overrides = ctypes.create_string_buffer(bytes.fromhex(asked["overrides"]))
    probe, probed = Probe(), Probed()
    probe.path = bytes.fromhex(asked["path"])
    probe.lora = bytes.fromhex(asked["lora"]) or None
    probe.overrides = ctypes.addressof(overrides) if len(overrides) > 1 else None
    ctypes.memmove(probe.context, context, len(context))
    lengths = asked["lengths"][:LENGTHS]
    probe.n_lengths = len(lengths)
    for i, n in enumerate(lengths):
        probe.lengths[i] = n
    code = function(probe, probed)
    names = ("no_scaling", "no_map", "error", "layers")
    texts = {name: getattr(probed, name).decode(errors="replace") for name in names}
    return {"code": code, "memory": list(probed.memory[: len(lengths)]), **texts}


if __name__ == "__main__":
    main(sys.argv[1])
