"""Reads and applies patch files (unified diffs) without git or patch, in memory.

A patch starts with a sentence that says why it exists; the first line that begins with `diff ` ends it.
A hunk applies where its context matches exactly: at its line, else at the nearest one, since earlier patches shift
lines.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


class PatchError(Exception):
    """A patch file that cannot be read or does not apply: one line with patch, file and place."""


@dataclass(frozen=True)
class Hunk:
    """`old` lines, found at 1-based `line`, become `new`; lines keep their line end."""

    line: int
    old: tuple[str, ...]
    new: tuple[str, ...]


@dataclass(frozen=True)
class FilePatch:
    """The hunks of one file; `created` and `deleted` say that it does not exist before, or after."""

    path: str
    hunks: tuple[Hunk, ...]
    created: bool = False
    deleted: bool = False


@dataclass(frozen=True)
class Patch:
    """A named list of file changes, with the reason that its author gave."""

    name: str
    reason: str
    files: tuple[FilePatch, ...]


def as_text(data: bytes) -> str:
    """A file's bytes as text; bytes that are not UTF-8 survive the way back."""
    return data.decode("utf-8", "surrogateescape")


def as_bytes(text: str) -> bytes:
    """The way back of as_text()."""
    return text.encode("utf-8", "surrogateescape")


def split(text: str) -> list[str]:
    """Lines with their ends; only \\n ends a line, so that a carriage return stays part of it."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def parse(name: str, text: str) -> Patch:
    """Reads a patch file. Raises PatchError with the line number of what it does not understand."""
    lines = split(text)
    start = next((i for i, line in enumerate(lines) if line.startswith(("diff ", "--- "))), len(lines))
    reason = "".join(lines[:start]).strip()
    files: list[FilePatch] = []
    i = start
    while i < len(lines):
        if not lines[i].startswith("--- "):
            if lines[i].startswith(("rename ", "copy ", "GIT binary", "Binary files")):
                raise PatchError(f"{name}.patch line {i + 1}: renames and binary changes are not understood")
            if lines[i].startswith("@@"):
                raise PatchError(f"{name}.patch line {i + 1}: a hunk without `---` and `+++` lines before it")
            i += 1
            continue
        if i + 1 >= len(lines) or not lines[i + 1].startswith("+++ "):
            raise PatchError(f"{name}.patch line {i + 2}: `+++` expected after `---`")
        old, new = (_path(line) for line in lines[i : i + 2])
        i += 2
        hunks: list[Hunk] = []
        while i < len(lines) and (head := HUNK.match(lines[i])):
            hunk, i = _hunk(name, lines, i, head)
            hunks.append(hunk)
        if not hunks:
            raise PatchError(f"{name}.patch line {i + 1}: no hunk for {new or old}")
        files.append(FilePatch(new or old, tuple(hunks), created=not old, deleted=not new))
    if not files:
        raise PatchError(f"{name}.patch changes no file")
    return Patch(name, reason, tuple(files))


def _path(line: str) -> str:
    """The path of a `---` or `+++` line without its a/ or b/; empty for /dev/null."""
    path = line[4:].split("\t")[0].strip()
    return "" if path == "/dev/null" else path.split("/", 1)[-1]


def _hunk(name: str, lines: list[str], i: int, head: re.Match[str]) -> tuple[Hunk, int]:
    """The hunk whose @@ line is lines[i], and the index behind it. The counts of the @@ line end the hunk, so
    that a removed line that looks like `--- x` is still content."""
    n_old, n_new = (int(head[g]) if head[g] else 1 for g in (2, 4))
    old: list[str] = []
    new: list[str] = []
    i += 1
    while len(old) < n_old or len(new) < n_new or (i < len(lines) and lines[i].startswith("\\")):
        if i >= len(lines):
            raise PatchError(f"{name}.patch ends within a hunk")
        kind, content = (lines[i][0], lines[i][1:]) if lines[i].strip("\r\n") else (" ", lines[i])
        if kind == "\\":  # "\ No newline at end of file", said of the line before it
            before = lines[i - 1][0]
            if before != "+":
                old[-1] = old[-1].removesuffix("\n")
            if before != "-":
                new[-1] = new[-1].removesuffix("\n")
        elif kind in " -+":
            if kind != "+":
                old.append(content)
            if kind != "-":
                new.append(content)
        else:
            raise PatchError(f"{name}.patch line {i + 1}: ' ', '-' or '+' expected at its start")
        i += 1
    if len(old) != n_old or len(new) != n_new:
        raise PatchError(f"{name}.patch line {i}: the hunk has not the number of lines that its @@ line says")
    line = int(head[1]) + (n_old == 0)  # "@@ -5,0 ..." means: behind line 5
    return Hunk(line, tuple(old), tuple(new)), i


def reverse(patch: Patch) -> Patch:
    """The patch that takes `patch` back."""

    def back(file: FilePatch) -> FilePatch:
        hunks: list[Hunk] = []
        shift = 0
        for hunk in file.hunks:
            hunks.append(Hunk(hunk.line + shift, hunk.new, hunk.old))
            shift += len(hunk.new) - len(hunk.old)
        return replace(file, hunks=tuple(hunks), created=file.deleted, deleted=file.created)

    return replace(patch, files=tuple(back(f) for f in reversed(patch.files)))


def apply(
    patch: Patch, read: Callable[[str], str | None], only: Iterable[str] | None = None
) -> dict[str, str | None]:
    """The new text of each file that the patch changes (None: the file is gone).

    read(path) gives a file's text, None when it does not exist; `only` limits the work to some paths.
    Raises PatchError when a hunk's context is not there.
    """
    out: dict[str, str | None] = {}
    for file in patch.files:
        if only is not None and file.path not in only:
            continue
        text = out[file.path] if file.path in out else read(file.path)
        where = f"patch {patch.name} does not apply to {file.path}"
        if file.created and text is not None:
            raise PatchError(f"{where}: it makes this file, which is there already")
        if not file.created and text is None:
            raise PatchError(f"{where}: no such file")
        lines = split(text or "")
        shift = done = 0
        for hunk in file.hunks:
            at = _find(lines, hunk.old, hunk.line - 1 + shift, done)
            if at is None:
                shown = next((x.strip() for x in hunk.old if x.strip()), "")
                raise PatchError(f"{where}: nothing there matches the hunk of line {hunk.line}, `{shown}`...")
            lines[at : at + len(hunk.old)] = hunk.new
            done = at + len(hunk.new)
            shift = at - (hunk.line - 1) + len(hunk.new) - len(hunk.old)
        if file.deleted and lines:
            raise PatchError(f"{where}: it removes this file, which has other lines too")
        out[file.path] = None if file.deleted else "".join(lines)
    return out


def _find(lines: list[str], old: tuple[str, ...], at: int, lowest: int) -> int | None:
    """The index >= lowest nearest to `at` at which lines contain `old`."""
    last = len(lines) - len(old)
    if not old:
        return at if lowest <= at <= last else None
    for distance in range(len(lines) + 1):
        for i in (at - distance, at + distance):
            if lowest <= i <= last and lines[i] == old[0] and tuple(lines[i : i + len(old)]) == old:
                return i
    return None


def git_diff(sides: Mapping[str, tuple[bytes | None, bytes | None]]) -> str:
    """The diff between two states of some files, path -> (before, after), None where there is no file.

    Made by git, whose diffs read best; raises PatchError when it is not installed.
    """
    if not shutil.which("git"):
        raise PatchError("git makes the diff of an export: install it")
    with tempfile.TemporaryDirectory() as folder:
        for side in "ab":
            Path(folder, side).mkdir()
        for path, pair in sides.items():
            for side, content in zip("ab", pair, strict=True):
                if content is not None:
                    file = Path(folder, side, path)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content)
        env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        how = ["--no-index", "--no-prefix", "--no-color", "--no-ext-diff", "--no-renames", "--text"]
        command = ["git", "-c", "core.autocrlf=false", "diff", *how, "a", "b"]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True)
    if done.returncode > 1:
        raise PatchError(f"git diff failed: {as_text(done.stderr).strip()}")
    # Blob hashes would change with every other patch of the series.
    return re.sub(r"^index [0-9a-f]+\.\.[0-9a-f]+.*\n", "", as_text(done.stdout), flags=re.M)
