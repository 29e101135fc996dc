"""scripts/models_table.py: every architecture of upstream with the op and without it, on upstream's own tiny models."""

from __future__ import annotations

import os

import check_policies
import models_table
import pytest
from tiny_models import children, page
from tiny_models.check import Found
from tiny_models.library import WITHOUT, Library, Tiny


@pytest.fixture(scope="module")
def found() -> list[Found]:
    return children.check_all(Library().all(), os.cpu_count() or 2)


def test_logits_agree_within_upstreams_own_rounding(found: list[Found]) -> None:
    """And nothing crashes, hangs, or gives numbers that are not finite."""
    assert page.Totals.of(found).problems == []
    assert len({one.arch for one in found}) + len(WITHOUT) >= 150


def test_layers_are_taken_or_refused_with_a_reason(found: list[Found]) -> None:
    for one in found:
        if one.counts:
            assert one.taken + sum(one.refused.values()) >= one.layers, one
            assert all(reason for reason in one.refused), one


def test_memories_that_can_be_cut_were(found: list[Found]) -> None:
    cut = {one.arch for one in found if one.cut}
    assert {"llama", "gemma3", "gpt-oss", "deepseek2"} <= cut
    assert cut.isdisjoint({"qwen35", "mamba", "lfm2"})


def test_a_crash_names_its_model_and_ends_no_other() -> None:
    crashed, fine = children.check_all([Tiny("plm", False), Tiny("llama", False)], 1)
    assert crashed.problem.startswith("ended with SIGABRT") and "GGML_ASSERT" in crashed.problem
    assert fine.problem == "" and fine.whole


def test_one_key_less_would_be_noticed() -> None:
    found = children.check_all([Tiny(arch, False) for arch in ("llama", "qwen35")], 2, "sinks(1)+window(300)")
    assert all("logits differ" in one.problem for one in found)


def test_nine_in_ten_are_taken_whole_and_the_page_says_so(found: list[Found]) -> None:
    total = page.Totals.of(found)
    assert total.share >= 0.9
    rows = page.rows(page.page(total))
    assert len(rows) == total.architectures
    assert page.rows(models_table.PAGE.read_text()) == rows, "run scripts/models_table.py"


POLICIES = {  # upstream's architecture -> layers that no policy can have
    "llama": "",
    "olmo2": "",
    "gpt-oss": "",
    "cohere2": "would change no layer",
    "minimax-m3": "layer 1 (attention of the model's own, without llama.cpp's common function)",
    "deepseek32": "layers 0-1 (the model's own indexer chooses the keys)",
}


@pytest.mark.parametrize("arch", POLICIES)
def test_a_rope_policy_runs_in_every_full_layer_or_is_refused(arch: str) -> None:
    library = Library()
    found = check_policies.one(library, next(tiny for tiny in library.all() if tiny.arch == arch))
    assert found.problem == ""
    assert all(POLICIES[arch] in why for why in found.refused.values())
    assert len(found.refused) >= 8 if POLICIES[arch] else not found.refused
