"""scripts/vendor.py and scripts/patchfile.py against a small made-up package; nothing is downloaded."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import patchfile
import pytest

import vendor

FILES = {
    "CMakeLists.txt": b"project(fake)\n",
    "src/a.c": b"".join(b"int a%d;\n" % i for i in range(40)),
    "src/b.c": b"int b;\r\nint \xff;\nlast",
    "src/run.sh": b"echo\n",
    "media/logo.png": b"\x89PNG",
    "src/skip.h": b"huge\n",
}
KEPT = {"CMakeLists.txt", "src/a.c", "src/b.c", "src/run.sh"}
HOOK = """\
Hook into a: the extension must see it.

--- a/src/a.c
+++ b/src/a.c
@@ -9,4 +9,5 @@
 int a8;
 int a9;
+int hook;
 int a10;
 int a11;
"""
needs_git = pytest.mark.skipif(not shutil.which("git"), reason="git makes the diff of an export")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A vendor folder with one patch, and the made-up sdist in the cache."""
    monkeypatch.setenv("PYLLAMA_CACHE", str(tmp_path / "cache"))
    sdist = tmp_path / "cache" / "fake-1.0.tar.gz"
    sdist.parent.mkdir()
    with tarfile.open(sdist, "w:gz") as tar:
        for name, data in FILES.items():
            info = tarfile.TarInfo(f"fake-1.0/up/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    folder = tmp_path / "vendor"
    (folder / "patches").mkdir(parents=True)
    sha256 = hashlib.sha256(sdist.read_bytes()).hexdigest()
    (folder / "UPSTREAM.toml").write_text(
        f'package = "fake-none"\nversion = "1.0"\ncommit = "0"\nsha256 = "{sha256}"\n'
        'sdist = "fake-1.0.tar.gz"\n'
        'root = "fake-1.0/up"\ninclude = [\n    "CMakeLists.txt",  # a comment\n    "src/*",\n]\n'
        'exclude = ["src/skip.h"]\n'
    )
    add_patch(folder, "hook", HOOK)
    return folder


def add_patch(folder: Path, name: str, text: str) -> None:
    (folder / "patches" / f"{name}.patch").write_bytes(text.encode())
    with (folder / "patches" / "series").open("a") as series:
        series.write(f"{name}\n")


def run(folder: Path, *args: str) -> int:
    return vendor.main(["--folder", str(folder), *args])


def error(folder: Path, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line that a failing command prints."""
    capsys.readouterr()
    assert run(folder, *args) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("vendor: error: ")
    return lines[0]


def test_apply_unpacks_what_is_included_and_patches_it(folder: Path) -> None:
    assert run(folder, "apply") == 0
    tree = vendor.Tree.read(folder / "tree")
    assert tree.names() == KEPT
    assert tree.content("src/b.c") == FILES["src/b.c"]
    text = (folder / "tree/src/a.c").read_text()
    assert text.splitlines()[9:12] == ["int a9;", "int hook;", "int a10;"]
    assert run(folder, "verify") == 0


def test_apply_does_nothing_when_up_to_date(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "apply")
    (folder.parent / "cache" / "fake-1.0.tar.gz").unlink()  # proves that nothing is unpacked again
    capsys.readouterr()
    assert run(folder, "apply") == 0
    assert "up to date" in capsys.readouterr().out


def test_apply_restores_a_removed_file(folder: Path) -> None:
    run(folder, "apply")
    (folder / "tree/src/run.sh").unlink()
    assert run(folder, "apply") == 0
    assert (folder / "tree/src/run.sh").read_bytes() == FILES["src/run.sh"]


def test_a_changed_series_rewrites_only_what_differs(folder: Path) -> None:
    run(folder, "apply")
    for path in KEPT:
        os.utime(folder / "tree" / path, ns=(10**18, 10**18))
    (folder / "patches/hook.patch").write_text(HOOK.replace("int hook", "int other"))
    assert run(folder, "apply") == 0
    touched = {path for path in KEPT if (folder / "tree" / path).stat().st_mtime_ns != 10**18}
    assert touched == {"src/a.c"}
    assert b"int other;" in (folder / "tree/src/a.c").read_bytes()


def test_dest_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    assert run(folder, "apply", "--dest", str(tmp_path / "build/up")) == 0
    assert (tmp_path / "build/up/src/a.c").is_file() and not (folder / "tree").exists()


def test_apply_keeps_edits_unless_forced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "apply")
    (folder / "tree/src/run.sh").write_text("edited\n")
    (folder / "patches/hook.patch").write_text(HOOK.replace("int hook", "int other"))
    assert "src/run.sh" in error(folder, capsys, "apply")
    assert (folder / "tree/src/run.sh").read_text() == "edited\n"
    assert run(folder, "apply", "--force") == 0
    assert (folder / "tree/src/run.sh").read_bytes() == FILES["src/run.sh"]


def test_apply_leaves_a_foreign_folder_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tree").mkdir()
    (folder / "tree/mine.txt").write_text("mine")
    assert "was not made by vendor.py" in error(folder, capsys, "apply")
    assert (folder / "tree/mine.txt").read_text() == "mine"


def test_a_stopped_apply_is_finished_by_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = vendor._write

    def stop(path: Path, data: bytes) -> None:
        if path.name == "run.sh":
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(vendor, "_write", stop)
    with pytest.raises(KeyboardInterrupt):
        run(folder, "apply")
    monkeypatch.undo()
    monkeypatch.setenv("PYLLAMA_CACHE", str(folder.parent / "cache"))
    assert run(folder, "apply") == 0
    assert run(folder, "verify") == 0


def test_a_patch_that_does_not_apply_names_patch_file_and_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_patch(folder, "stale", HOOK.replace("int a10;", "int gone;"))
    said = error(folder, capsys, "apply")
    assert "stale" in said and "src/a.c" in said and "line 9" in said
    assert not (folder / "tree").exists()


def test_a_hunk_may_be_shifted_by_an_earlier_patch(folder: Path) -> None:
    top = "Three lines on top: this shifts hunks.\n\n--- a/src/a.c\n+++ b/src/a.c\n@@ -1 +1,4 @@\n"
    (folder / "patches/top.patch").write_text(top + "+x\n+y\n+z\n int a0;\n")
    (folder / "patches/series").write_text("top\nhook\n")
    assert run(folder, "apply") == 0
    assert (folder / "tree/src/a.c").read_text().splitlines()[13] == "int hook;"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "tree/src/a.c").write_bytes(b"x"), "src/a.c"),
        (lambda f: (f / "tree/src/run.sh").unlink(), "src/run.sh"),
        (lambda f: (f / "tree/src/new.c").write_bytes(b""), "src/new.c"),
        (lambda f: (f / "patches/extra.patch").write_text(HOOK), "does not list extra.patch"),
        (lambda f: (f / "patches/series").write_text("hook\ngone\n"), "gone stands without a file"),
        (lambda f: (f / "patches/series").write_text("hook\nhook\n"), "hook stands twice"),
        (lambda f: (f / "patches/series").unlink(), "series is missing"),
        (lambda f: (f / "patches/hook.patch").write_text(HOOK[HOOK.index("---") :]), "why it exists"),
        (lambda f: (f / "patches/hook.patch").write_text(HOOK + "\n"), "run `vendor.py apply`"),
        (lambda f: (f.parent / "cache/fake-1.0.tar.gz").write_bytes(b"x"), "sha256"),
    ],
)
def test_verify_names_what_differs(
    folder: Path, capsys: pytest.CaptureFixture[str], change: object, said: str
) -> None:
    run(folder, "apply")
    assert callable(change)
    change(folder)
    assert said in error(folder, capsys, "verify")


def test_a_wrong_hash_stops_before_anything_is_unpacked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "UPSTREAM.toml"
    path.write_text(path.read_text().replace('sha256 = "', 'sha256 = "00'))
    assert "sha256" in error(folder, capsys, "apply")
    assert not (folder / "tree").exists()


def test_a_download_is_checked_and_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdist = folder.parent / "cache/fake-1.0.tar.gz"
    good = sdist.read_bytes()
    up = vendor.Upstream.read(folder)
    for data in (b"bad", good):
        sdist.unlink(missing_ok=True)
        monkeypatch.setattr(
            vendor, "pip_download", lambda pin, what, dest, kept, d=data: (dest / up.sdist).write_bytes(d)
        )
        if data == good:
            assert vendor.fetch(up).read_bytes() == good
        else:
            with pytest.raises(vendor.VendorError, match=r"downloaded .* has sha256"):
                vendor.fetch(up)
    assert [path.name for path in sdist.parent.iterdir()] == [sdist.name]


@needs_git
def test_export_round_trip(folder: Path) -> None:
    run(folder, "apply")
    tree = folder / "tree"
    (tree / "src/a.c").write_bytes((tree / "src/a.c").read_bytes().replace(b"int a30;\n", b"--- x\n+++ y\n"))
    (tree / "src/b.c").write_bytes(b"int b;\r\nint \xff\xfe;\nlast\n")
    (tree / "src/new.c").write_bytes(b"no end")
    (tree / "src/run.sh").unlink()
    assert run(folder, "export", "more", "-m", "More of everything: the test needs it.") == 0
    assert (folder / "patches/series").read_text() == "hook\nmore\n"
    assert (folder / "patches/more.patch").read_text("latin-1").startswith("More of everything:")
    assert (folder / "patches/hook.patch").read_text() == HOOK
    assert run(folder, "verify") == 0
    edited = {path: vendor.Tree(tree).content(path) for path in vendor.Tree(tree).names()}
    shutil.rmtree(tree)
    assert run(folder, "apply") == 0
    assert {path: vendor.Tree(tree).content(path) for path in vendor.Tree(tree).names()} == edited


@needs_git
def test_export_into_an_earlier_patch_leaves_the_later_ones(folder: Path) -> None:
    later = "Later in the file: after the hook.\n\n--- a/src/a.c\n+++ b/src/a.c\n@@ -30,2 +30,3 @@\n"
    later += " int a28;\n+int later;\n int a29;\n"
    add_patch(folder, "later", later)
    assert run(folder, "apply") == 0
    file = folder / "tree/src/a.c"
    file.write_text(file.read_text().replace("int hook;", "int hook;\nint hook2;"))
    assert run(folder, "export", "hook") == 0
    patch = (folder / "patches/hook.patch").read_text()
    assert patch.startswith("Hook into a: the extension must see it.\n\ndiff --git a/src/a.c b/src/a.c\n")
    assert "+int hook2;" in patch and "later" not in patch
    assert (folder / "patches/later.patch").read_text() == later
    assert run(folder, "verify") == 0


@needs_git
def test_export_takes_only_the_named_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "apply")
    (folder / "tree/src/run.sh").write_text("one\n")
    (folder / "tree/CMakeLists.txt").write_text("two\n")
    assert run(folder, "export", "one", "src/run.sh", "-m", "Only one file: the other waits.") == 0
    assert "CMakeLists" not in (folder / "patches/one.patch").read_text()
    assert "CMakeLists.txt" in error(folder, capsys, "verify")


@needs_git
def test_export_says_what_it_lacks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "apply" in error(folder, capsys, "export", "hook")
    run(folder, "apply")
    assert "-m" in error(folder, capsys, "export", "new")
    assert "nothing to export" in error(folder, capsys, "export", "new", "-m", "A reason for nothing.")
    assert "small letters" in error(folder, capsys, "export", "a/b", "-m", "A reason for nothing.")
    later = HOOK.replace("+int hook;", " int hook;\n+int later;").replace("-9,4 +9,5", "-9,5 +9,6")
    add_patch(folder, "later", later)
    assert run(folder, "apply") == 0
    file = folder / "tree/src/a.c"
    file.write_text(file.read_text().replace("int later;", "int mine;"))
    assert "later patch later" in error(folder, capsys, "export", "hook")


@needs_git
def test_git_reads_patches_the_same_way(tmp_path: Path) -> None:
    """Our reader and `git apply` agree on a patch with several hunks, a new file and a removed one."""
    old = {"a": FILES["src/a.c"], "b": b"gone\nnow"}
    new = {"a": FILES["src/a.c"].replace(b"a3;", b"x3;").replace(b"int a20;\n", b""), "c": b"made\nhere"}
    diff = patchfile.git_diff({p: (old.get(p), new.get(p)) for p in ("a", "b", "c")})
    for path, data in old.items():
        (tmp_path / path).write_bytes(data)
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff.encode(), check=True)
    read = {path: data.decode() for path, data in old.items()}.get
    patch = patchfile.parse("x", diff)
    ours = patchfile.apply(patch, read)
    for path, text in ours.items():
        there = tmp_path / path
        assert text == (there.read_text() if there.exists() else None)
    back = patchfile.apply(patchfile.reverse(patch), ours.get)
    assert back == {"a": old["a"].decode(), "b": "gone\nnow", "c": None}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Why.\n", "changes no file"),
        ("--- a/x\n@@ -1 +1 @@\n", r"line 2: `\+\+\+` expected"),
        ("--- a/x\n+++ b/x\n", "no hunk for x"),
        ("--- a/x\n+++ b/x\n@@ -1,3 +1,3 @@\n a\n", "ends within a hunk"),
        ("--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n a\n*b\n", "line 5"),
        ("--- a/x\n+++ b/x\n@@ -1 +1,2 @@\n a\n b\n", "the number of lines"),
        ("diff --git a/x b/y\nrename from x\n", "line 2: renames"),
        ("diff --git a/x b/x\n@@ -1 +1 @@\n", "line 2: a hunk without"),
    ],
)
def test_a_patch_that_cannot_be_read_names_the_line(text: str, said: str) -> None:
    with pytest.raises(patchfile.PatchError, match=said):
        patchfile.parse("x", text)


def test_the_real_series_is_in_order() -> None:
    """What `verify` requires of the committed files, without the tree."""
    up = vendor.Upstream.read(vendor.FOLDER)
    assert len(up.sha256) == 64 and up.sdist.endswith(f"{up.version}.tar.gz")
    vendor.read_series(vendor.FOLDER)
