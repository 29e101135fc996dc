"""Upstream's own tokenizer, as published, loaded before ours: a library for LD_PRELOAD."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import vendor

TREE = vendor.FOLDER / "tree"
SOURCES = ("src/unicode.cpp", "src/unicode-data.cpp", "src/llama-vocab.cpp")


def build(folder: Path) -> Path:
    """Compiles upstream's unpatched tokenizer with the headers of our tree, in about 30 s. Functions of a library
    that is loaded first replace those of the same names in libllama."""
    library = folder / "upstream_tokenizer.so"
    files = vendor.pristine(vendor.Upstream.read(vendor.FOLDER))
    for name in SOURCES:
        (folder / Path(name).name).write_bytes(files[name])
    include = [f"-I{TREE / part}" for part in ("src", "include", "ggml/include")]
    sources = [str(folder / Path(name).name) for name in SOURCES]
    ours = vendor.FOLDER.parents[1] / "pyllama_long" / "lib"
    link = ["-shared", *sources, str(ours / "libllama.so"), f"-Wl,-rpath,{ours}", "-o", str(library)]
    subprocess.run(["c++", "-std=c++17", "-O2", "-DNDEBUG", "-fPIC", *include, *link], check=True)
    return library


def pre_tokenizers() -> dict[str, str]:
    """Each name of tokenizer.ggml.pre that upstream knows, with the type that it stands for."""
    text = (TREE / "src/llama-vocab.cpp").read_text(encoding="utf-8")
    out: dict[str, str] = {}
    names: list[str] = []
    for name, kind in re.findall(r'tokenizer_pre == "([^"]+)"|pre_type = LLAMA_VOCAB_PRE_TYPE_(\w+)', text):
        if name:
            names.append(name)
        else:
            out |= dict.fromkeys(names, kind)
            names = []
    return out
