from __future__ import annotations

import pytest

from pyllama_long import LongLlama, chat_formats


def test_chat_templates_that_cannot_be_read(demo_model: str) -> None:
    model = LongLlama(demo_model, vocab_only=True)
    with pytest.warns(
        UserWarning, match="chat_template.default of .*: the model.s chat template cannot be read"
    ):
        assert chat_formats.chat_formats(model._model, {"tokenizer.chat_template": "{% if"}, 1, 2) == {}
    found = chat_formats.chat_formats(model._model, {"tokenizer.chat_template.tools": "hello"}, -1, -1)
    assert list(found) == ["chat_template.tools"]
    model.close()
