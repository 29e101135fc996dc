"""Upstream's chat templates with the conversations that clients send."""

from __future__ import annotations

from pathlib import Path

import check_templates
import pytest

PATHS = sorted(check_templates.TEMPLATES.glob("*.jinja"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_nothing_is_left_out(path: Path) -> None:
    template = check_templates.read(path)
    found = {name: check_templates.outcome(template, c) for name, c in check_templates.CONVERSATIONS.items()}
    assert {name: why for name, (kind, why) in found.items() if kind != "ok"} == {}
