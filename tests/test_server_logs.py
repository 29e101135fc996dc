"""The log shows which requests were made, but not their texts."""

from __future__ import annotations

import logging
import time

import httpx
import pytest


def test_prompts_are_not_in_the_log(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("pyllama_long.server")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    with caplog.at_level("DEBUG", logger=logger.name):
        client.post("/completion", json={"prompt": "A very private word", "n_predict": 1})
        # A request is logged after its answer has gone out.
        end = time.monotonic() + 5
        while not caplog.records and time.monotonic() < end:
            time.sleep(0.01)
    records = [record for record in caplog.records if record.name == logger.name]
    assert records and all("private" not in str(record.__dict__) for record in records)
