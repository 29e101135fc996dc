#!/usr/bin/env python3
"""Every warning about `ggml_ext/` is an error: its files, with the flags of a build, read by the compiler once more.

    scripts/check_warnings.py [BUILD]      BUILD: a folder with compile_commands.json, by default build/dev

A build itself only warns, so that a user's newer compiler cannot make it fail. Nothing is compiled here, only checked
(`-fsyntax-only`; warnings that need an optimizer stay warnings of the build). Headers of llama.cpp count as the
system's: their warnings are upstream's. Files of instruction sets that the build leaves out are not seen. Exit status
1 where there is a warning.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["-fsyntax-only", "-Wall", "-Wextra", "-Werror"]


def arguments(command: str, upstream: Path) -> list[str]:
    """A compiler's command, turned from one that compiles into one that checks."""
    given = iter(shlex.split(command))
    result = []
    for one in given:
        if one in ("-o", "-MF", "-MT", "-MQ"):
            next(given)
        elif one.startswith("-I") and Path(one[2:]).is_relative_to(upstream):
            result += ["-isystem", one[2:]]
        elif one not in ("-c", "-MD", "-MMD"):
            result.append(one)
    return [*result, *FLAGS]


def check(entry: dict[str, str], upstream: Path) -> str:
    """What the compiler says about a file: empty when all is well."""
    done = subprocess.run(
        arguments(entry["command"], upstream),
        cwd=entry["directory"],
        capture_output=True,
        text=True,
        check=False,
    )
    return (
        "" if done.returncode == 0 else done.stderr or f"{entry['file']}: the compiler fails without a word\n"
    )


def main(args: list[str]) -> int:
    build = Path(args[0]) if args else ROOT / "build" / "dev"
    commands = build / "compile_commands.json"
    if not commands.is_file():
        print(f"no {commands}: run `make build` first", file=sys.stderr)
        return 2
    ours = [
        entry
        for entry in json.loads(commands.read_text())
        if Path(entry["file"]).is_relative_to(ROOT / "ggml_ext")
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        said = [text for text in pool.map(lambda entry: check(entry, ROOT / "vendor"), ours) if text]
    sys.stderr.write("".join(said))
    print(f"{len(said)} of {len(ours)} files of ggml_ext have warnings")
    return 1 if said or not ours else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
