"""The rate at which a prompt is read."""

from __future__ import annotations

import io

from rich.console import Console

from pyllama_long.cli.prefill import Prefill


def test_the_rate_counts_new_tokens_only() -> None:
    prefill = Prefill(Console(file=io.StringIO()))
    with prefill.reading(512):
        for done in (2512, 3024, 3100):
            prefill(done, 3100)
    assert prefill.new == 1100
