"""A conversation as the model reads it: as text in the template's form, and as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import calls, channels, reading
from .answer import AnswerParser
from .errors import bad
from .schemas.conversation import Message, Tool
from .state import Loaded
from .template import Rendered
from .template_options import PLAIN, TemplateOptions


@dataclass(frozen=True)
class Prompt:
    """thinking: the template has begun the model's reasoning; marks: around it. form: of calls in the answer.
    channel: the one that the prompt ends in, if the model writes to channels. special: control tokens are among the
    marks by which an answer is read, so they are part of its text."""

    tokens: list[int]
    text: str
    thinking: bool
    form: calls.Format
    channel: channels.Channel | None
    marks: tuple[str, str] | None
    special: bool

    def parser(
        self,
        tools: Sequence[Tool] = (),
        forced: bool = False,
        own_grammar: bool = False,
    ) -> AnswerParser:
        """The parser of an answer that may call tools. forced: it must; own_grammar: it has the form that the client
        requested."""
        return AnswerParser(
            self.form,
            [tool.function.name for tool in tools],
            thinks=self.marks is not None,
            thinking=self.thinking and not own_grammar,
            marks=self.marks,
            schemas={tool.function.name: tool.function.parameters or {} for tool in tools},
            forced=forced,
            channel=None if own_grammar else self.channel,
        )


def render(loaded: Loaded, messages: Sequence[Message], options: TemplateOptions) -> Rendered:
    """Renders a conversation with the model's template."""
    return loaded.chat_template().rendered(
        messages, options.tools.tools, options.answer, options.continued, options.values
    )


def make(
    loaded: Loaded,
    messages: Sequence[Message],
    options: TemplateOptions = PLAIN,
    salt: str = "",
    bounded: bool = False,
) -> Prompt:
    """The prompt of a conversation. salt: whose cached prefixes may be used. bounded: raises ApiError if it cannot fit
    the context."""
    engine, found = loaded.engine, render(loaded, messages, options)
    pieces = found.pieces
    if not pieces:
        raise bad("The chat template made an empty prompt of these messages.", "messages")
    if bounded:
        loaded.check_length(pieces)
    template = loaded.chat_template()
    first = pieces[0]
    bos = template.bos
    tokens = loaded.token_prefixes.tokenize(first.removeprefix(bos) if bos else first, True, salt)
    if bos and first.startswith(bos) and tokens[:1] != [engine.token_bos]:
        tokens = engine.tokenize(first.encode(), False, True)
    for piece in pieces[1:]:
        tokens += engine.tokenize(piece.encode(), False, True)
    style = channels.style_of(template.source)
    channel = None if style is None else channels.of_prompt(found.text, found.thinking)
    form = calls.Hermes(drops=loaded.form.drops) if found.told else loaded.form
    special = _has_controls(loaded, form, channel, bool(options.tools.tools))
    return Prompt(tokens, found.text, found.thinking, form, channel, template.thinking, special)


def _has_controls(loaded: Loaded, form: calls.Format, channel: channels.Channel | None, tools: bool) -> bool:
    marks = {*form.drops, *(channels.MARKS if channel is not None else ())}
    marks.update(loaded.chat_template().thinking or ())
    if tools:
        marks.update(reading.MARKS, form.marks)
    whole = "\n".join(marks)
    return any(name in whole for name in loaded.controls)
