"""Models of the Hugging Face hub: REPO, REPO:FILE, or REPO:QUANTIZATION."""

from __future__ import annotations

import re
from pathlib import Path

from pyllama_long.cli.command_error import CommandError

_PREFERRED = ("Q4_K_M", "Q8_0", "Q5_K_M", "Q4_0", "F16")
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def download(spec: str) -> Path:
    """The local path of a model, which is downloaded if necessary; for a split model, the path of its first part.

    Raises CommandError with one line.
    """
    repo, _, wanted = spec.partition(":")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise CommandError(f"{spec!r} is not REPO[:FILE]: write owner/name or owner/name:file.gguf")
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError:
        raise CommandError("--hf needs huggingface_hub: pip install 'pyllama-long[hub]'") from None
    try:
        name = wanted if wanted.endswith(".gguf") else choose(repo, wanted, HfApi().list_repo_files(repo))
        paths = [Path(hf_hub_download(repo, part)) for part in parts(name)]
        return paths[0]
    except CommandError:
        raise
    except Exception as error:  # the hub's client raises errors of many libraries
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CommandError(f"{spec} cannot be downloaded: {reason[0]}") from error


def choose(repo: str, wanted: str, files: list[str]) -> str:
    """The file to use: one whose name contains `wanted`; without that, the only one or a usual quantization."""
    models = [f for f in files if f.endswith(".gguf") and "mmproj" not in f.lower()]
    models = [f for f in models if (part := _PART.search(f)) is None or int(part[1]) == 1]
    if not models:
        raise CommandError(f"{repo} has no .gguf file: look for a repository whose name ends in -GGUF")
    if wanted:
        found = [f for f in models if wanted.lower() in f.lower()]
        if not found:
            raise CommandError(f"{repo} has no {wanted}; it has: {', '.join(models)}")
        return found[0]
    if len(models) == 1:
        return models[0]
    for quantization in _PREFERRED:
        for name in models:
            if quantization.lower() in name.lower():
                return name
    raise CommandError(f"{repo} has several models: add one after a colon: {', '.join(models)}")


def parts(name: str) -> list[str]:
    """All files of a split model, given its first one."""
    part = _PART.search(name)
    if part is None:
        return [name]
    return [f"{name[: part.start()]}-{k:05d}-of-{part[2]}.gguf" for k in range(1, int(part[2]) + 1)]
