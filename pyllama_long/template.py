"""Chat templates: turn messages into the text that a model was trained on. Nothing that users wrote becomes a control
token, and nothing is left out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

import jinja2
from jinja2 import meta

from pyllama_long import conversation
from pyllama_long.conversation import Shape
from pyllama_long.sandbox import Environment
from pyllama_long.sandbox_budget import Budget

# Private-use characters of Unicode; the first one that no message contains marks cuts.
_CUTS = [chr(c) for c in (*range(0xFDD0, 0xFDF0), *range(0xE000, 0xE100))]
_SEARCHES = 100  # from the beginning of the text, for what is out of order
_THINKING = [  # texts in templates, and the marks around the model's reasoning that they show
    ("<|channel|>analysis<|message|>", ("<|channel|>analysis<|message|>", "<|end|>")),
    ("<atem:function_calls>", (" to=self<|message|>", "<|eom|>")),
    ("<|begin|>assistant<|think|>", ("<|think|>", "<|end|>")),
    ("<|end_of_msg|>", ("<|open|>think<|sep|>", "<|close|>think<|sep|>")),
    ("'</think{}>'.format(HYTK)", ("<think:opensource>", "</think:opensource>")),
    ("</think>", ("<think>", "</think>")),
    ("</seed:think>", ("<seed:think>", "</seed:think>")),
    ("[/THINK]", ("[THINK]", "[/THINK]")),
    ("<|END_THINKING|>", ("<|START_THINKING|>", "<|END_THINKING|>")),
    ("</mm:think>", ("<mm:think>", "</mm:think>")),
    ("<|inner_suffix|>", ("<|inner_prefix|>", "<|inner_suffix|>")),
    ("<channel|>", ("<|channel>thought", "<channel|>")),
    ("[BEGIN FINAL RESPONSE]", ("Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]")),
]
_TOOLS = frozenset(
    "tools custom_tools builtin_tools available_tools functions".split()
)  # templates' names for them
_ENVIRONMENT = Environment()

Tool = Mapping[str, Any]


class TemplateRefusal(ValueError):
    """A template does not accept a conversation; the message says why. code: for programs."""

    code = "template_refused"


@dataclass(frozen=True)
class Rendered:
    """pieces: of the prompt; each is tokenized on its own, with control tokens, and then all are concatenated.
    thinking: the prompt has begun the model's reasoning. told: calls and results are plain text, in the form of
    `conversation.as_text`."""

    pieces: list[str]
    thinking: bool
    told: bool

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True)
class Ask:
    """Options of a rendering. written: writes a call of a name and arguments as text; told: the text that describes
    tools where the template knows none; own: writes calls in the model's own form, for templates that know tools but
    write no calls. values: the template's own variables, such as enable_thinking."""

    tools: Sequence[Tool] = ()
    add_generation_prompt: bool = True
    continue_final_message: bool | None = None
    values: Mapping[str, Any] | None = None
    written: Callable[[str, str], str] = conversation.as_text
    told: Callable[[Sequence[Tool]], str] = conversation.instructions
    own: Callable[[Sequence[tuple[str, Any]]], str] = conversation.all_as_text
    stopped: Callable[[], bool] | None = None


class ChatTemplate:
    """source: the GGUF's own template. control: the names of the model's control tokens. Raises ValueError for a text
    that is not a template.

    A control token's name in a message would become that token. So a mark is inserted after its first character
    before rendering, and the rendered text is cut at the marks: no piece contains a whole name from a message, and
    what the template itself writes stays whole.
    """

    def __init__(self, source: str, bos: str, eos: str, control: Iterable[str]) -> None:
        self.source, self.bos = source, bos
        self._tokens = {"bos_token": bos, "eos_token": eos}
        names = sorted((name for name in control if len(name) > 1), key=len, reverse=True)
        self._names = re.compile(f"(?=({'|'.join(map(re.escape, names))}))") if names else None
        self._starts = {name[:n] for name in names for n in range(1, len(name))}
        self._longest = max(map(len, names), default=0)
        try:
            self._template = _ENVIRONMENT.compiled(source)
            self.variables = meta.find_undeclared_variables(_ENVIRONMENT.parse(source))
        except (ValueError, RecursionError, jinja2.TemplateError) as error:
            raise ValueError(f"the model's chat template cannot be read: {error}") from None
        self.knows_tools = not self.variables.isdisjoint(_TOOLS)
        self._knows_calls = self.knows_tools or "tool_calls" in source
        self.knows_developer = "developer" in source
        self.thinking = next((marks for shown, marks in _THINKING if shown in source), None)
        self._reasoning = conversation.reasoning_key(source)
        self._ids = conversation.id_form(source)

    @property
    def thinks(self) -> bool:
        return self.thinking is not None

    def render(self, messages: Sequence[Mapping[str, Any]], ask: Ask | None = None) -> Rendered:
        """messages: as OpenAI's API has them, with text for content and for arguments. A last message of the
        assistant is continued, unless ask says otherwise. The template gets them as they are if it accepts all of
        them, else in the nearest shape that it accepts. Raises TemplateRefusal, and sandbox.Stopped when nobody
        waits."""
        ask = ask or Ask()
        own, given = conversation.prepared(messages, self.knows_developer, self._ids), list(ask.tools) or None
        values = dict(ask.values or {})
        strings = set(_characters([own, given, values]))
        cut, end = ([c for c in _CUTS if c not in strings] + ["", ""])[:2]
        if not end:
            raise TemplateRefusal("The messages have too many different private characters in them.")
        own, given, values = (self._marked(value, cut) for value in (own, given, values))
        last = own[-1]
        continued = (
            ask.continue_final_message is not False
            and (ask.add_generation_prompt or ask.continue_final_message is True)
            and last["role"] == "assistant"
            and not last.get("tool_calls")
        )
        if not continued:
            text, told = self._first_that_holds(own, given, values, ask, ask.add_generation_prompt)
            return self._cut(text, cut, told)
        field = "content" if last["content"] or not last.get("reasoning_content") else "reasoning_content"
        if not last[field]:
            text, told = self._first_that_holds(own[:-1], given, values, ask, True)
            return self._cut(text, cut, told)
        try:
            ends = {**last, field: last[field] + end}
            text, told = self._first_that_holds([*own[:-1], ends], given, values, ask, False)
        except TemplateRefusal:
            text, told = "", False
        if end in text:
            return self._cut(text[: text.rindex(end)], cut, told)
        # The template does not write this last answer as it is, so it is put where a new one would be.
        text, told = self._first_that_holds(own[:-1], given, values, ask, True)
        return self._cut(text + cut + last[field], cut, told)

    def _cut(self, text: str, cut: str, told: bool) -> Rendered:
        thinking = False
        if self.thinking is not None:
            begin, close = self.thinking
            tail = text[-4096:]
            at = tail.rfind(begin)
            after = tail[at + len(begin) :]
            thinking = at >= 0 and close not in after and (not after.strip() or not self._ends_turn(after))
        return Rendered([piece for piece in text.split(cut) if piece], thinking, told)

    def _ends_turn(self, text: str) -> bool:
        return self._names is not None and self._names.search(text) is not None

    def _first_that_holds(
        self, own: list[dict[str, Any]], given: Any, values: dict[str, Any], ask: Ask, answer: bool
    ) -> tuple[str, bool]:
        """The text of the first shape in which the template accepts the messages and leaves nothing out."""
        if not own:
            raise TemplateRefusal("There is no message to answer.")
        refused: TemplateRefusal | None = None
        lost: tuple[str, str, bool] | None = None
        tried: list[Any] = []
        for shape in conversation.shapes(own, self._knows_calls):
            shaped = shape.applied(own, given, ask.written, ask.told, ask.own)
            if shaped in tried:
                continue
            tried.append(shaped)
            found, tools = shaped
            try:
                text = self._filled(found, tools, values, ask, answer)
            except TemplateRefusal as error:
                refused = refused or error
                continue
            why = _left_out(text, own, given if shape.tools != "text" else None)
            if given and shape.tools != "text" and not self.knows_tools:
                why = why or "the tools"
            if not why:
                return text, shape.tools == "text"
            if lost is None and not _is_gone(text, own):
                lost = why, text, shape.tools == "text"
            refused = refused or TemplateRefusal(f"The model's chat template leaves out {why}.")
        if lost is not None:
            return lost[1], lost[2]
        assert refused is not None
        raise refused

    def _filled(self, own: Any, given: Any, values: dict[str, Any], ask: Ask, answer: bool) -> str:
        own = conversation.with_reasoning(own, self._reasoning)
        try:
            return self._in_own_types(own, given, values, ask, answer)
        except TemplateRefusal:
            described = conversation.described(given)
            if described == given:
                raise
        # some templates put descriptions of tools into the text even if there are none
        return self._in_own_types(own, described, values, ask, answer)

    def _in_own_types(self, own: Any, given: Any, values: dict[str, Any], ask: Ask, answer: bool) -> str:
        try:
            return self._run(own, given, values, ask, answer)
        except TypeError as error:
            if given is None:
                try:  # some templates loop over the tools even if there are none
                    return self._run(own, [], values, ask, answer)
                except TypeError:
                    pass
            # some templates put arguments into the text unchanged
            if any(isinstance(a, dict) for a in conversation.arguments_of(own)):
                try:
                    return self._run(conversation.with_text_arguments(own), given, values, ask, answer)
                except TypeError:
                    pass
            raise _cannot(error) from None

    def _run(self, own: Any, given: Any, values: dict[str, Any], ask: Ask, answer: bool) -> str:
        all_values = {
            **values,
            "messages": own,
            "tools": given,
            "functions": json.dumps(given or [], ensure_ascii=False, indent=4),  # Firefunction's, and:
            "datetime": datetime.now().strftime("%B %d %Y"),
            "add_generation_prompt": answer,
            **self._tokens,
        }
        budget = Budget([own, given, values], stopped=ask.stopped)
        try:
            return _ENVIRONMENT.rendered(self._template, all_values, budget)
        except TypeError:
            raise
        except jinja2.TemplateError as error:
            reason = str(error.message or "").strip().split("\n")[0][:200]
            raise TemplateRefusal(f"The model's chat template refuses these messages: {reason}") from None
        except (
            RecursionError,
            ArithmeticError,
            LookupError,
            ValueError,
            AttributeError,
            MemoryError,
        ) as error:
            raise _cannot(error) from None

    def _marked(self, value: Any, cut: str) -> Any:
        """Puts marks into all texts of a value."""
        if isinstance(value, str):
            return self.mark(value, cut)
        if isinstance(value, dict):
            return {self.mark(key, cut): self._marked(item, cut) for key, item in value.items()}
        if isinstance(value, list):
            return [self._marked(item, cut) for item in value]
        return value

    def mark(self, text: str, cut: str) -> str:
        """Puts `cut` into every name of a control token, and after an end of text that could begin one."""
        if self._names is None:
            return text
        places = [match.start() + 1 for match in self._names.finditer(text)]
        if any(text.endswith(text[-n:]) and text[-n:] in self._starts for n in range(1, self._longest)):
            places.append(len(text))
        if not places:
            return text
        bounds = [0, *places, len(text)]
        return cut.join(text[a:b] for a, b in pairwise(bounds))


def _cannot(error: Exception) -> TemplateRefusal:
    why = type(error).__name__
    if isinstance(error, RecursionError):
        why = "it calls itself without end"
    elif str(error):
        why = f"{why}: {str(error).splitlines()[0][:120]}"
    return TemplateRefusal(f"The model's chat template cannot render these messages ({why}).")


def _left_out(text: str, messages: Sequence[Mapping[str, Any]], tools: Any) -> str:
    """Says what a rendered text lacks of its messages; "" if nothing."""
    at, searches, asked = 0, 0, 0
    for i, message in enumerate(messages):
        content = _shown(message)
        names = [call["function"]["name"] for call in message.get("tool_calls", ())]
        if message["role"] == "assistant" and names:
            content = ""  # many templates write either calls or a text
        for part in (content, *names):
            found = _find(text, part, at)
            if found < 0 and searches < _SEARCHES:
                searches += 1
                # Names of tools also occur before the conversation.
                found = _find(text, part, asked if part in names else 0)
                if found < 0:
                    what = "a call" if part in names else "the text"
                    return f"{what} of message {i} ({message['role']})"
            at = max(at, found + len(part))
        if message["role"] == "user":
            asked = asked or at
    if tools and not any(tool["function"]["name"] in text for tool in tools):
        return "the tools"
    return ""


def _is_gone(text: str, messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether most words of some message are missing, rather than written in another way."""
    for message in messages:
        words = _shown(message).split()[:64]
        if words and not message.get("tool_calls") and 2 * sum(word in text for word in words) < len(words):
            return True
    return False


def _shown(message: Mapping[str, Any]) -> str:
    """The text of a message that a template has to write."""
    content: str = message["content"]
    if message["role"] == "assistant":
        content = content.rpartition("</think>")[2]
    return content.strip()


def _find(text: str, part: str, start: int) -> int:
    found = text.find(part, start)
    for ascii_only in (False, True):
        if found >= 0:
            break
        found = text.find(json.dumps(part, ensure_ascii=ascii_only)[1:-1], start)
    return found


def _characters(value: Any) -> Iterator[str]:
    """The private-use characters of all texts in a value."""
    if isinstance(value, str):
        yield from set(value).intersection(_CUTS)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _characters(key)
            yield from _characters(item)
    elif isinstance(value, list):
        for item in value:
            yield from _characters(item)


__all__ = ["Ask", "ChatTemplate", "Rendered", "Shape", "TemplateRefusal"]
