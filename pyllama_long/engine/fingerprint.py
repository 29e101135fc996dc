"""Digests of what kept sequences depend on: the model, how it runs, and their owner."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pyllama_long import _native
from pyllama_long.engine.context import Context

_SAMPLES, _SAMPLE = 16, 1 << 16  # samples of a model file: places, bytes at each


def salt_hash(salt: str) -> str:
    """The hash that stands for an API key in files."""
    return hashlib.blake2b(salt.encode(), digest_size=16, person=b"pyllama-long").hexdigest()


def fingerprint(context: Context) -> str:
    """A digest of everything that the contents of cells depend on, besides tokens and RoPE factor."""
    opened = context.opened
    size, digest = _digest(opened.path)
    adapters = [[*_digest(path, whole=True), scale] for path, scale in opened.lora if scale]
    params = opened.params
    kinds = [params.type_k, params.type_v, params.flash_attn_type, opened.precision, opened.upstream]
    runs = [str(context.plan), str(context.rope), context.n_train, *kinds, _native.ABI_VERSION]
    return hashlib.sha256(json.dumps([size, digest, *runs, *adapters]).encode()).hexdigest()


def _digest(file: str, whole: bool = False) -> tuple[int, str]:
    """A file's size, and a digest of all or parts of it."""
    path, digest = Path(file), hashlib.sha256()
    size = path.stat().st_size
    parts = [max(0, size - _SAMPLE) * i // (_SAMPLES - 1) for i in range(_SAMPLES)]
    with path.open("rb") as f:
        for at in range(0, size, _SAMPLE) if whole else parts:
            f.seek(at)
            digest.update(f.read(_SAMPLE))
    return size, digest.hexdigest()
