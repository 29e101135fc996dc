"""A short form of scripts/check_conversations.py: LongLlama, a server beside other conversations, and a restart."""

from __future__ import annotations

import json

import check_conversations
import pytest


@pytest.mark.parametrize("arch", ["qwen35", "gemma3"])
def test_edited_conversations_of_3000_tokens(arch: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--tokens", "3000", "--messages", "16", "--edits", "1", "--every", "256", "--others", "2"]
    code = check_conversations.main([*options, "--archs", arch, "--threads", "2"])
    out = capsys.readouterr()
    assert code == 0, out.out + out.err
    found = json.loads(out.out.splitlines()[-1])
    assert (len(found["rows"]), found["wrong"]) == (6, 0)
    for row in found["rows"]:
        assert row["prompt"] > 2500
        assert row["evaluated"] < 0.7 * row["prompt"]
