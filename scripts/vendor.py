"""Fetches the pinned upstream source, applies our patches, and checks both.

    python scripts/vendor.py apply  [--dest DIR] [--force]
    python scripts/vendor.py export NAME [-m "Why it exists."] [PATH ...]
    python scripts/vendor.py verify
    python scripts/vendor.py sdist

`vendor/llama.cpp/UPSTREAM.toml` names the package, its sha256 and the files that are unpacked;
`patches/series` names the patches in order. The tree is never committed. Needs Python 3.10 and pip; `export`
needs git too. `sdist` prints where the package is, fetched and checked: install_bindings.sh installs from it.
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import patchfile
from patchfile import Patch, PatchError

FOLDER = Path(__file__).resolve().parents[1] / "vendor" / "llama.cpp"
STATE = ".vendor.json"  # inside the tree: which series it holds, and the sha256 of each file
UNFINISHED = "unfinished"

Files = dict[str, bytes]  # path below the tree's root, with / -> content


class VendorError(Exception):
    """One line that says what is wrong and what to do."""


# ---- configuration -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Upstream:
    """UPSTREAM.toml: a package's sdist, and the part of it that is unpacked."""

    package: str
    version: str
    commit: str
    sdist: str
    sha256: str
    root: str
    include: list[str]
    exclude: list[str]

    @classmethod
    def read(cls, folder: Path) -> Upstream:
        path = folder / "UPSTREAM.toml"
        try:
            text = path.read_text(encoding="utf-8")
            # Strings and lists of strings are written alike in TOML and Python, and tomllib is not in 3.10.
            pairs = re.findall(r"^(\w+)[ \t]*=[ \t]*(.*?)(?=^\w+[ \t]*=|\Z)", text, re.M | re.S)
            return cls(**{key: ast.literal_eval(value.strip()) for key, value in pairs})
        except (OSError, TypeError, ValueError, SyntaxError) as error:
            raise VendorError(f"cannot read {path}: {error}") from error


def read_series(folder: Path) -> list[Patch]:
    """The patches in order. Refuses missing and unlisted files, and patches that do not say why they exist."""
    series = folder / "patches" / "series"
    if not series.is_file():
        raise VendorError(f"{series} is missing; an empty file means no patches")
    names = [line.split("#")[0].strip() for line in series.read_text(encoding="utf-8").splitlines()]
    names = [name.removesuffix(".patch") for name in names if name]
    there = {path.stem for path in series.parent.glob("*.patch")}
    for name in names:
        if name not in there or names.count(name) > 1:
            raise VendorError(
                f"patches/series: {name} stands " + ("twice" if name in there else "without a file")
            )
    if left := sorted(there.difference(names)):
        raise VendorError(f"patches/series does not list {left[0]}.patch: add its line, or remove the file")
    patches = [
        patchfile.parse(name, patchfile.as_text((series.parent / f"{name}.patch").read_bytes()))
        for name in names
    ]
    for patch in patches:
        if not re.match(r"[A-Z`].{15,}?[.:](\s|$)", patch.reason, re.S):
            raise VendorError(f"{patch.name}.patch does not begin with a sentence that says why it exists")
    return patches


def series_key(folder: Path) -> str:
    """A hash of everything that determines the tree's content."""
    patches = folder / "patches"
    parts = [folder / "UPSTREAM.toml", patches / "series", *sorted(patches.glob("*.patch"))]
    digest = hashlib.sha256()
    for path in parts:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def pristine(up: Upstream) -> Files:
    """Upstream's files as published, those that UPSTREAM.toml includes."""
    out: Files = {}
    with tarfile.open(fetch(up)) as tar:
        for member in tar:
            path = member.name.removeprefix(up.root + "/")
            if path == member.name or not _matches(path, up.include) or _matches(path, up.exclude):
                continue
            if stream := tar.extractfile(member) if member.isfile() else None:
                out[path] = stream.read()
    if not out:
        raise VendorError(f"{up.sdist} has nothing of `include` below {up.root}: mend UPSTREAM.toml")
    return out


def patched(files: Files, patches: Iterable[Patch]) -> Files:
    """The files after the patches, in order."""
    out = dict(files)
    for patch in patches:
        for path, text in patchfile.apply(
            patch, lambda p: patchfile.as_text(out[p]) if p in out else None
        ).items():
            if text is None:
                out.pop(path)
            else:
                out[path] = patchfile.as_bytes(text)
    return out


# ---- the package -------------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """Where downloads are kept: $PYLLAMA_CACHE, else pyllama-long in the user's cache folder."""
    if place := os.environ.get("PYLLAMA_CACHE"):
        return Path(place).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyllama-long"


def fetch(up: Upstream) -> Path:
    """The sdist in the cache, downloaded with pip if necessary; its sha256 is always checked."""
    kept = cache_dir() / up.sdist
    if kept.is_file():
        if (found := _sha256(kept.read_bytes())) == up.sha256:
            return kept
        raise VendorError(
            f"{kept} has sha256 {found}, UPSTREAM.toml says {up.sha256}: remove it and try again"
        )
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VendorError(
            f"cannot make the cache ({error}): set PYLLAMA_CACHE to a writable folder"
        ) from error
    print(
        f"vendor: fetching {up.package}=={up.version} with pip (once; kept in {kept.parent})",
        file=sys.stderr,
        flush=True,
    )
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix="fetch-") as folder:
        # Only this package: `:all:` would also build its build tools, such as CMake, from source.
        pip_download(f"{up.package}=={up.version}", ["--no-binary", up.package], Path(folder), kept)
        got = Path(folder) / up.sdist
        if not got.is_file():
            raise VendorError(f"pip did not download {up.sdist}: mend `sdist` in UPSTREAM.toml")
        if (found := _sha256(got.read_bytes())) != up.sha256:
            raise VendorError(f"downloaded {up.sdist} has sha256 {found}, UPSTREAM.toml says {up.sha256}")
        os.replace(got, kept)
    return kept


def pip_download(pin: str, options: list[str], dest: Path, kept: Path) -> None:
    """Downloads PACKAGE==VERSION without what it depends on into a folder. kept: where it can be put by hand."""
    # An isolated build hides the environment's pip behind PYTHONPATH: -I and the cleaned env see past it.
    outer = ("PYTHONPATH", "PIP_BUILD_TRACKER", "_PYPROJECT_HOOKS_", "PEP517_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(outer)}
    base = getattr(sys, "_base_executable", sys.executable)
    ways = [[sys.executable, "-I", "-m", "pip"], [base, "-I", "-m", "pip"], [shutil.which("pip") or ""]]
    what = ["download", "--quiet", "--no-deps", *options, "-d", str(dest), pin]
    for way in ways:
        if not way[0] or subprocess.run([*way, "--version"], env=env, capture_output=True).returncode:
            continue
        done = subprocess.run(way + what, env=env, capture_output=True, text=True, errors="replace")
        if done.returncode == 0:
            return
        said = done.stderr.splitlines()
        said = [x for x in said if x.startswith("ERROR") and x != "ERROR: Exception:"] or said
        raise VendorError(f"pip could not download {pin} ({' '.join(said[-1:])}); offline, put it at {kept}")
    raise VendorError(f"no pip found: run `{sys.executable} -m ensurepip`, or put {kept.name} at {kept}")


# ---- the tree ----------------------------------------------------------------------------------------------


@dataclass
class Tree:
    """A folder that `apply` made, and what it recorded about it."""

    path: Path
    key: str = ""
    sha256: Mapping[str, str] | None = None  # sha256 of each file; None: nothing recorded

    @classmethod
    def read(cls, path: Path) -> Tree:
        try:
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
            return cls(path, state["key"], state["files"])
        except (OSError, ValueError, KeyError):
            return cls(path)

    def record(self, key: str, files: Mapping[str, str]) -> None:
        self.key, self.sha256 = key, files
        _write(self.path / STATE, json.dumps({"key": key, "files": files}, indent=0).encode())

    def names(self) -> set[str]:
        """Every file in the tree, except the record."""
        found = {Path(top, name) for top, _, names in os.walk(self.path) for name in names}
        return {path.relative_to(self.path).as_posix() for path in found} - {STATE}

    def content(self, path: str) -> bytes | None:
        file = self.path / path
        return file.read_bytes() if file.is_file() else None

    def edits(self) -> dict[str, bytes | None]:
        """Files that differ from the record, with their content now (None: removed)."""
        known = self.sha256 or {}
        now = {path: self.content(path) for path in sorted(self.names().union(known))}
        return {path: data for path, data in now.items() if data is None or _sha256(data) != known.get(path)}

    def sync(self, key: str, wanted: Files) -> int:
        """Makes the folder hold `wanted`; returns the number of changes. A file that is already right keeps its
        modification time, so that a build only repeats what a changed patch touches."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.record(UNFINISHED, self.sha256 or {})
        changed = 0
        for path in self.names().difference(wanted):
            (self.path / path).unlink()
            changed += 1
        for path, data in wanted.items():
            if self.content(path) != data:
                _write(self.path / path, data)
                changed += 1
        self.record(key, {path: _sha256(data) for path, data in wanted.items()})
        return changed


# ---- commands ----------------------------------------------------------------------------------------------


def apply(folder: Path, dest: Path, force: bool = False) -> None:
    """Makes dest hold upstream plus our patches; fast if it already does. Refuses if there are edits that no patch
    holds."""
    up, patches, key, tree = Upstream.read(folder), read_series(folder), series_key(folder), Tree.read(dest)
    state = f"{up.package} {up.version} + {len(patches)} patches in {dest}"
    if tree.key == key and not force and all((dest / path).is_file() for path in tree.sha256 or {}):
        print(f"vendor: up to date: {state}")
        return
    if tree.sha256 is None and dest.is_dir() and any(dest.iterdir()):
        raise VendorError(
            f"{dest} was not made by vendor.py and is not empty: remove it, or give another --dest"
        )
    wanted = patched(pristine(up), patches)
    if not force and tree.key != UNFINISHED:
        lost = [path for path, data in tree.edits().items() if data is not None and data != wanted.get(path)]
        if lost:
            raise VendorError(
                f"{dest} has edits that no patch holds: {_some(lost)}; keep them with "
                "`vendor.py export NAME`, or drop them with `vendor.py apply --force`"
            )
    print(f"vendor: {state}, {tree.sync(key, wanted)} files written")


def export(folder: Path, dest: Path, name: str, reason: str = "", only: Iterable[str] = ()) -> None:
    """Writes patches/NAME.patch so that the series gives the tree as it is edited now; a new NAME goes last.

    `only` takes just the edits of these paths. Edits may be anywhere except on the lines of a later patch.
    """
    up, patches, tree = Upstream.read(folder), read_series(folder), Tree.read(dest)
    if tree.key != series_key(folder):
        raise VendorError(f"{dest} does not hold the present series: run `vendor.py apply` first")
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise VendorError(f"patch name {name!r}: small letters, digits and - only")
    at = next((i for i, patch in enumerate(patches) if patch.name == name), len(patches))
    old, later = (patches[at] if at < len(patches) else None), patches[at + 1 :]
    reason = reason or (old.reason if old else "")
    if not reason:
        raise VendorError(f'{name} is a new patch: say why it exists with -m "One sentence."')
    edits = {path: data for path, data in tree.edits().items() if not only or path in only}
    base = pristine(up)
    before, now = patched(base, patches[:at]), patched(base, patches)
    sides: dict[str, tuple[bytes | None, bytes | None]] = {}
    for path in sorted(edits.keys() | {file.path for file in (old.files if old else ())}):
        after = edits[path] if path in edits else now.get(path)
        for patch in reversed(later):
            if path in (file.path for file in patch.files):
                here = {} if after is None else {path: patchfile.as_text(after)}
                try:
                    undone = patchfile.apply(patchfile.reverse(patch), here.get, only=[path])[path]
                except PatchError as error:
                    raise VendorError(
                        f"edits of {path} lie on lines of the later patch {patch.name}"
                    ) from error
                after = None if undone is None else patchfile.as_bytes(undone)
        sides[path] = before.get(path), after
    sides = {path: pair for path, pair in sides.items() if pair[0] != pair[1]}
    diff = patchfile.git_diff(sides)
    if not diff:
        raise VendorError(f"nothing to export: {dest} has no edits" + (f" in {_some(only)}" if only else ""))
    text = f"{reason.strip()}\n\n{diff}"
    wanted = patched(base, [*patches[:at], patchfile.parse(name, text), *later])
    if wrong := [path for path, data in edits.items() if wanted.get(path) != data]:
        raise VendorError(f"the exported patch would not give back {_some(wrong)}; nothing was written")
    _write(folder / "patches" / f"{name}.patch", patchfile.as_bytes(text))
    if old is None:
        with (folder / "patches" / "series").open("a", encoding="utf-8", newline="\n") as series:
            series.write(f"{name}\n")
    read_series(folder)
    tree.record(series_key(folder), {path: _sha256(data) for path, data in wanted.items()})
    print(f"vendor: wrote patches/{name}.patch ({len(sides)} files)")


def verify(folder: Path, dest: Path) -> None:
    """Checks the sdist in the cache, the series, and every byte of the tree; the error names what differs."""
    up, patches, tree = Upstream.read(folder), read_series(folder), Tree.read(dest)
    kept = cache_dir() / up.sdist
    if kept.is_file():
        fetch(up)
    if tree.key != series_key(folder):
        raise VendorError(f"{dest} does not hold the present series: run `vendor.py apply`")
    if edits := tree.edits():
        raise VendorError(f"{dest} is not upstream + patches in {_some(edits)}: `export` or `apply --force`")
    count = len(tree.sha256 or {})
    print(f"vendor: {up.package} {up.version}, {len(patches)} patches, {count} files: all as recorded")


# ---- small parts -------------------------------------------------------------------------------------------


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _some(paths: Iterable[str]) -> str:
    names = list(paths)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_of(path: Path) -> str:
    """Of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, so that a stopped run leaves no half-written file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder of UPSTREAM.toml and patches/")
    parser.add_argument("--dest", type=Path, help="the tree (default: tree/ in that folder)")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("apply", help="fetch, unpack, patch; fast when up to date")
    one.add_argument("--force", action="store_true", help="drop edits that no patch holds")
    two = commands.add_parser("export", help="write the tree's edits into one patch")
    two.add_argument("name")
    two.add_argument("paths", nargs="*", help="take the edits of these files only")
    two.add_argument("-m", "--reason", default="", help="the sentence that says why the patch exists")
    three = commands.add_parser("verify", help="check the package, the series and every file")
    for sub in (one, two, three):
        sub.add_argument("--dest", type=Path, default=argparse.SUPPRESS, help="the tree")
    commands.add_parser("sdist", help="print the path of upstream's package, fetched if necessary")
    args = parser.parse_args(argv)
    dest: Path = args.dest or args.folder / "tree"
    try:
        if args.command == "apply":
            apply(args.folder, dest, args.force)
        elif args.command == "export":
            export(args.folder, dest, args.name, args.reason, args.paths)
        elif args.command == "sdist":
            print(fetch(Upstream.read(args.folder)))
        else:
            verify(args.folder, dest)
    except (VendorError, PatchError, OSError) as error:
        print(f"vendor: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
