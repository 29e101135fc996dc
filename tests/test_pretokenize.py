"""Long runs, special tokens and odd vocabularies: the same tokens as upstream, or an error, and never an abort."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pretokenizers import files, texts, upstream

ROOT = Path(__file__).parents[1]
WORKER = ROOT / "scripts" / "pretokenizers" / "worker.py"
GPT2 = upstream.TREE / "models" / "ggml-vocab-gpt-2.gguf"


def answers(path: Path, inputs: list[str]) -> list[list[Any]]:
    """The library's result for each text: [hash, tokens, seconds], or [error]. A worker must not end by a signal."""
    command = [sys.executable, str(WORKER), str(path), "60"]
    done = subprocess.run(command, input=json.dumps(inputs), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_expression_splits_as_std_regex_does(tmp_path: Path) -> None:
    source = (upstream.TREE / "src" / "llama-vocab.cpp").read_text(encoding="utf-8")
    lists = re.findall(r"regex_exprs = (\{.*?\n\s*\});", source, re.S)
    assert len(lists) > 30
    (tmp_path / "patterns.h").write_text(",\n".join(lists), encoding="utf-8")
    program, tree, ours = tmp_path / "pretokenize", upstream.TREE / "src", ROOT / "ggml_ext" / "llama"
    sources = [
        ROOT / "tests" / "native" / "pretokenize.cpp",
        ours / "pretokenize.cpp",
        ours / "regex_compile.cpp",
        tree / "unicode-data.cpp",
    ]
    include = [f"-I{tmp_path}", f"-I{ours}", f"-I{tree}"]
    subprocess.run(["c++", "-std=c++17", "-O0", *include, *map(str, sources), "-o", str(program)], check=True)
    done = subprocess.run([str(program), "1", "12"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[:2000]
    assert int(done.stdout) > 20_000


@pytest.mark.parametrize("name", ["gpt-4o", "deepseek-llm"])
def test_long_runs(tmp_path: Path, name: str) -> None:
    (path,) = files.each_pre(GPT2, tmp_path, [name])
    runs = [texts.run(kind, 60_000) for kind in texts.KINDS]
    for kind, answer in zip(texts.KINDS, answers(path, runs), strict=True):
        assert len(answer) == 3, f"{kind}: {answer}"
        assert answer[1] > 0, kind


def test_many_special_tokens_take_linear_time(tmp_path: Path) -> None:
    path = files.small(tmp_path / "small.gguf", "llama")
    few, many = answers(path, ["<|im_start|>a<|im_end|> b" * n for n in (1000, 40_000)])
    assert many[1] == 40 * (few[1] - 1) + 1
    assert many[2] < 20


def test_characters_without_a_token_take_linear_time(tmp_path: Path) -> None:
    """SentencePiece writes such characters as bytes."""
    path = files.small(tmp_path / "small.gguf", "llama")
    few, many = answers(path, ["\U0001f999" * n for n in (1000, 500_000)])
    assert many[1] - few[1] == 4 * 499_000
    assert many[2] < 10


@pytest.mark.parametrize("model", ["llama", "t5", "bert", "rwkv", "gpt2"])
def test_odd_vocabularies_end_nothing(tmp_path: Path, model: str) -> None:
    merges = {"merges": ["a a", "aa a"]} if model in ("gpt2", "gemma4") else {}
    one = {"tokens": ["a"], "token_type": [1], "scores": [0.0], "add_bos_token": True, "add_eos_token": True}
    odd = [
        "<unk>",
        b"\xff\xfe",
        b"\xf7\xbf\xbf\xbf",
        "",
        "\\x",
        "<0xZZ>",
        "<0x",
        *(f"x{i}" for i in range(300)),
    ]
    kinds: dict[str, dict[str, Any]] = {
        "one token": one,
        "bytes without a value": {"token_type": [6] * 1000},
        "odd bytes": {"tokens": odd, "token_type": [1] * len(odd), "scores": [0.0] * len(odd)},
        "ids outside": {
            "bos_token_id": 10**9,
            "eos_token_id": 10**9,
            "add_bos_token": True,
            "add_eos_token": True,
        },
        "no types": {"token_type": None, "scores": None},
    }
    for kind, keys in kinds.items():
        path = files.small(tmp_path / "odd.gguf", model, **merges, **keys)
        (answer, *_) = answers(path, ["hello é\n"])
        assert len(answer) == 3 or answer[0].startswith("cannot "), f"{kind}: {answer}"
        assert "no reason" not in answer[0], kind


@pytest.mark.parametrize(
    ("model", "keys", "reason"),
    [
        ("none", {}, "it has no vocabulary"),
        ("no_vocab", {}, "it has no vocabulary"),
        (
            "llama",
            {"tokens": ["a" * 5000], "token_type": [1], "scores": [0.0]},
            "a token of more than 4096 bytes",
        ),
        (
            "bert",
            {"bos_token_id": None, "tokens": ["a"], "token_type": [1], "scores": [0.0]},
            "adds BOS but names no",
        ),
        ("gpt2", {}, "cannot find tokenizer merges"),
    ],
)
def test_errors_say_what_the_file_lacks(
    tmp_path: Path, model: str, keys: dict[str, Any], reason: str
) -> None:
    (answer, *_) = answers(files.small(tmp_path / "bad.gguf", model, **keys), ["hello"])
    assert len(answer) == 1
    assert reason in answer[0]


def test_rwkv_ends_where_no_token_fits(tmp_path: Path) -> None:
    keys = {"tokens": ["<unk>", "ab"], "token_type": [1, 1], "scores": [0.0, 0.0], "unknown_token_id": 0}
    ((_, count, _),) = answers(files.small(tmp_path / "few.gguf", "rwkv", **keys), ["aab"])
    assert count == 2


def test_bytes_above_unicode_are_read_as_unknown(tmp_path: Path) -> None:
    """b"\\xf7\\xbf\\xbf\\xbf" is not a character; it ended the process."""
    code = (
        "import sys; from pyllama_long.opened import open_vocabulary\n"
        "model = open_vocabulary(sys.argv[1])\n"
        "print(model.tokenize(b'a\\xf7\\xbf\\xbf\\xbf', 0, 0) == model.tokenize(b'a' + b'\\xef\\xbf\\xbd' * 4, 0, 0))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(GPT2)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.strip() == "True"
