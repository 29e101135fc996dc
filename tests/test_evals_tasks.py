"""The tasks of evals by name."""

from __future__ import annotations

import pytest

from pyllama_long import filler
from pyllama_long.evals import EvalError, tasks
from pyllama_long.evals.agreement import Agreement
from pyllama_long.evals.perplexity import Perplexity
from pyllama_long.evals.phrasings import PHRASINGS
from pyllama_long.evals.retrieval import Retrieval

TEXT = " ".join(filler.sentences()[:400])


def test_names_of_groups_stand_for_tasks() -> None:
    assert tasks.named(["vt", "single", "vt"]) == ("vt", "niah_single_2")
    assert tasks.named(["ruler", "needle"]) == (*tasks.RULER, "needle") and len(tasks.RULER) == 11
    assert not set(tasks.ALIASES) & set(tasks.OPTIONS)
    assert {task for group in tasks.ALIASES.values() for task in group} <= set(tasks.OPTIONS)


@pytest.mark.parametrize("name", tasks.OPTIONS)
def test_every_task_is_made_from_its_options(name: str) -> None:
    own = {**tasks.OPTIONS[name]}
    if "phrasings" in own:
        own["phrasings"] = PHRASINGS
    made = tasks.make(name, own, TEXT, (512,), 0)
    assert isinstance(made, {"perplexity": Perplexity, "agreement": Agreement}.get(name, Retrieval))
    assert tasks.asked(own) in (10, 20)


def test_words_come_from_the_text() -> None:
    with pytest.raises(EvalError, match="words that can be keys"):
        tasks.make("cwe", {**tasks.OPTIONS["cwe"]}, "too short", (512,), 0)
