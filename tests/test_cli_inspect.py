"""`inspect`."""

from __future__ import annotations

import json

import pytest

from pyllama_long import cli


def test_inspect_the_embedded_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["architecture"], report["n_train"]) == ("llama", 512)
    assert [row["n_ctx"] for row in report["choices"]] == [512, 2048, 8192, 51200]
    assert report["choices"][0]["rope"] == "native"
    assert report["choices"][3]["rope"] == "rerope(128)+logn"
    assert report["choices"][3]["kv_bytes"] == 51200 * report["kv_bytes_per_token"]["f16"]
    assert cli.run(["inspect", "--attention", "skim"]) == 0
    shown = capsys.readouterr().out
    assert "512 tokens" in shown and "prefill: sinks(4)+window(508) | tail: exact" in shown


def test_lengths_as_people_write_them(capsys: pytest.CaptureFixture[str]) -> None:
    for text, tokens in (("4k", 4096), ("4K", 4096), ("8x", 4096), ("4096", 4096), ("0.5k", 512)):
        assert cli.run(["inspect", "--ctx", text, "--json"]) == 0
        assert [row["n_ctx"] for row in json.loads(capsys.readouterr().out)["choices"]] == [tokens]
