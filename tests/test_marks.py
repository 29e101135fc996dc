"""Where messages begin in the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from pyllama_long import marks
from pyllama_long.arrays import as_ids
from pyllama_long.model import Model
from pyllama_long.opened import open_vocabulary

TEXTS = ["Tell me of the sea.", "It is wide and deep.", "And how deep is it?"]


@pytest.fixture(scope="module")
def model(demo_model: str) -> Iterator[Model]:
    with closing(open_vocabulary(demo_model)) as opened:
        yield opened


def after(model: Model, ids: list[int], place: int) -> str:
    return model.detokenize(ids[place:], True).decode()


def test_control_tokens_stand_around_messages(model: Model) -> None:
    text = "".join(f"<|im_start|>user\n{text}<|im_end|>\n" for text in TEXTS)
    ids = model.tokenize(text.encode(), False, True)
    found = [after(model, ids, int(place)) for place in marks.of_tokens(model, as_ids(ids))]
    assert len(found) == 6
    assert all(rest.startswith(("<|im_start|>user", "<|im_end|>\n")) for rest in found)
    assert (
        marks.of_messages(model, as_ids(ids), TEXTS).tolist() == marks.of_tokens(model, as_ids(ids)).tolist()
    )
    assert marks.of_tokens(model, as_ids([ids[0], ids[0], *ids[1:4]])).tolist() == [0]


def test_texts_mark_messages_of_templates_without_control_tokens(model: Model) -> None:
    text = "".join(f"{who}: {text}\n\n" for who, text in zip(("User", "Bot", "User"), TEXTS, strict=True))
    ids = model.tokenize(text.encode(), False, True)
    found = marks.of_messages(model, as_ids(ids), [*TEXTS[:2], "is not there", TEXTS[2]])
    assert len(found) == 3
    for place, one in zip(found, TEXTS, strict=True):
        assert after(model, ids, int(place)).lstrip().startswith(one)
