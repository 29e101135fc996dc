"""Models of the hub."""

from __future__ import annotations

import pytest

from pyllama_long.cli import hub
from pyllama_long.cli.command_error import CommandError


def test_choosing_a_file_of_the_hub() -> None:
    files = ["README.md", "m-Q8_0.gguf", "m-Q4_K_M.gguf", "mmproj-m.gguf"]
    assert hub.choose("a/m", "", files) == "m-Q4_K_M.gguf"
    assert hub.choose("a/m", "q8_0", files) == "m-Q8_0.gguf"
    with pytest.raises(CommandError, match="has no Q2_K; it has: m-Q8_0"):
        hub.choose("a/m", "Q2_K", files)
    with pytest.raises(CommandError, match=r"has no \.gguf file"):
        hub.choose("a/m", "", ["model.safetensors"])
    split = [f"m-0000{k}-of-00003.gguf" for k in (1, 2, 3)]
    assert hub.choose("a/m", "", split) == split[0]
    assert hub.parts(split[0]) == split
    with pytest.raises(CommandError, match="owner/name"):
        hub.download("not a repository")
