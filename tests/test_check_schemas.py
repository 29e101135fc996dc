"""The campaign's own parts, and a small sample of it: an answer written under a schema fits it."""

from __future__ import annotations

import check_schemas
import pytest


def test_a_sample_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_schemas.main(["--schemas", "40", "--answers", "2", "--seed", "7", "--by-model", "0.05"]) == 0
    assert '"valid": ' in capsys.readouterr().out


def test_what_does_not_fit_is_found() -> None:
    assert check_schemas.problem({"type": "integer"}, '"1"').startswith("type")
    assert check_schemas.problem({}, "{").startswith("no JSON")
    assert check_schemas.problem({"maximum": 3}, "3") == ""
