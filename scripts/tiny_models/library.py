"""Upstream's tiny random models: its tests/test-llama-archs.cpp, compiled as it stands, makes one per architecture."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import make_random_gguf

import vendor
from pyllama_long import log
from pyllama_long._native import llama_cpp as C

ROOT = Path(__file__).resolve().parents[2]
TREE = vendor.FOLDER / "tree"
SOURCE = ROOT / "tests" / "native" / "tiny_models.cpp"
BUILT = ROOT / "build" / "tiny_models"
SEED = 7

# Upstream's test has no model of these; ours have the same parts.
OWN: dict[str, dict[str, Any]] = {"gemma4": {"type": "f32", "sliding_window": 32, "n_ctx_train": 256}}

# Nor of these.
ENCODERS = "bert modern-bert nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert t5encoder"
WITHOUT = dict.fromkeys(ENCODERS.split(), "an encoder") | {
    "gemma-embedding": "an encoder",
    "llama-embed": "an encoder",
    "clip": "an encoder of images",
    "wavtokenizer-dec": "a decoder of audio",
    "eagle3": "a draft model, which needs its target",
    "dflash": "a draft model, which needs its target",
    "gemma4-assistant": "a draft model, which needs its target",
    "rwkv6qwen2": "no attention layers",
    "rwkv7": "no attention layers",
    "arwkv7": "no attention layers",
    "gptj": "upstream has no graph of it",
    "deepseek2-ocr": "upstream's test has no model of it",
    "graniteswitch": "upstream's test has no model of it",
    "plm": "upstream's test has no model of it",
}


@dataclass(frozen=True)
class Tiny:
    """A tiny model of an architecture."""

    arch: str
    moe: bool


class Counts(ctypes.Structure):
    """Attention nodes that a context's graphs computed."""

    _fields_ = (("upstream", ctypes.c_int32), ("ours", ctypes.c_int32))


def build() -> Path:
    """Compiles the models' library in about 15 s, if a source or header of libllama is newer than it."""
    library = BUILT / "tiny_models.so"
    parts = ("tests", "src", "include", "ggml/include", "common")
    sources = [SOURCE, *(file for part in parts for file in (TREE / part).glob("*.h"))]
    sources.append(TREE / "tests" / "test-llama-archs.cpp")
    if library.is_file() and library.stat().st_mtime > max(file.stat().st_mtime for file in sources):
        return library
    BUILT.mkdir(parents=True, exist_ok=True)
    lib = ROOT / "pyllama_long" / "lib"
    include = [f"-I{TREE / part}" for part in (*parts, "vendor")]
    link = [str(lib / f"lib{name}.so") for name in ("llama", "ggml", "ggml-base")]
    part = library.with_suffix(f".{os.getpid()}.part")
    command = ["c++", "-std=c++17", "-O1", "-w", "-fPIC", "-shared", *include, str(SOURCE), *link]
    command += ["-Wl,--no-undefined", f"-Wl,-rpath,{lib}", "-o", str(part)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{SOURCE.name} does not compile: {done.stderr.strip()[:2000]}")
    part.replace(library)
    return library


class Library:
    """What tiny_models.cpp exports."""

    def __init__(self) -> None:
        C.llama_backend_init()
        log.install(verbose=False)
        lib = ctypes.CDLL(str(build()))
        self._text = {name: getattr(lib, name) for name in ("tiny_models_list", "tiny_model_kind")}
        buffer = (ctypes.c_char_p, ctypes.c_size_t)
        lib.tiny_models_list.argtypes, lib.tiny_model_kind.argtypes = (
            buffer,
            (C.llama_model_p_ctypes, *buffer),
        )
        for function in self._text.values():
            function.restype = ctypes.c_size_t
        lib.tiny_model.restype = C.llama_model_p_ctypes
        lib.tiny_model.argtypes = (ctypes.c_char_p, ctypes.c_bool, ctypes.c_size_t)
        self._make = lib.tiny_model
        self.count = ctypes.cast(lib.tiny_models_count, C.ggml_backend_sched_eval_callback)

    def all(self) -> list[Tiny]:
        rows = (line.split("\t") for line in self._read("tiny_models_list").splitlines())
        return [Tiny(arch, kind == "moe") for arch, kind in rows if arch not in WITHOUT]

    def kind(self, model: Any) -> str:
        return self._read("tiny_model_kind", model)

    @contextmanager
    def model(self, tiny: Tiny, folder: Path) -> Iterator[Any]:
        """A llama_model; None if there is none, and then upstream's log says why."""
        log.forget()
        if tiny.arch in OWN:
            path = folder / "own.gguf"
            make_random_gguf.write(path, tiny.arch, **OWN[tiny.arch])
            model = C.llama_model_load_from_file(str(path).encode(), C.llama_model_default_params())
        else:
            model = self._make(tiny.arch.encode(), tiny.moe, SEED)
        try:
            yield model
        finally:
            if model:
                C.llama_model_free(model)

    def _read(self, name: str, *given: Any) -> str:
        function = self._text[name]
        n = function(*given, None, 0)
        text = ctypes.create_string_buffer(n + 1)
        function(*given, text, n + 1)
        return text.value.decode()
