"""llama-server, built from the package that vendor/llama.cpp pins, without our patches."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import vendor

KEPT = ("amx-gcc12",)  # without it, quantized models crash when compiled by gcc 12
OFF = ("TESTS", "EXAMPLES", "UI", "APP")


class BenchError(Exception):
    """One line that says what is wrong and what to do."""


def llama_server(root: Path, say: Callable[[str], None]) -> Path:
    """The path of the program, which is built in the cache folder if necessary (10 minutes on two cores)."""
    up = vendor.Upstream.read(root / "vendor/llama.cpp")
    folder = vendor.cache_dir() / f"llama-server-{up.sha256[:12]}"
    program = folder / "build/bin/llama-server"
    if program.is_file():
        return program
    say(f"building llama-server of {up.package} {up.version} in {folder}, once (about 10 minutes)")
    source = folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    files = vendor.pristine(replace(up, include=["*"], exclude=["models/*", "*.git"]))
    patches = [patch for patch in vendor.read_series(root / "vendor/llama.cpp") if patch.name in KEPT]
    for path, content in vendor.patched(files, patches).items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content)
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF"]
    options += [f"-DLLAMA_BUILD_{part}=OFF" for part in OFF]
    log = folder / "build.log"
    with log.open("w") as out:
        for command in (
            ["cmake", "-S", str(source), "-B", str(folder / "build"), *options],
            ["cmake", "--build", str(folder / "build"), "--target", "llama-server", "--parallel"],
        ):
            if subprocess.run(command, stdout=out, stderr=out).returncode:
                raise BenchError(f"llama-server could not be built; see {log}, or give --llama-server")
    return program
