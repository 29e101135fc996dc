"""Chat templates: messages to the text that a model was trained on, with nothing of what users wrote taken for
a control token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pyllama_long.server.errors import bad
from pyllama_long.server.schemas.chat import Message, Tool

# Characters that Unicode gives no meaning; the first that no message has in it marks cuts.
_CUTS = [chr(c) for c in (*range(0xFDD0, 0xFDF0), *range(0xE000, 0xE100))]


class ChatTemplate:
    """source: the GGUF's own template. control: the names of the model's control tokens.

    A control token's name in a message would become that token. So a mark is put behind its first character
    before rendering, and the rendered text is cut at the marks: no piece has a whole name from a message in
    it, and what the template itself writes stays whole.
    """

    def __init__(self, source: str, bos: str, eos: str, control: Iterable[str]) -> None:
        self.source, self.bos = source, bos
        self._tokens = {"bos_token": bos, "eos_token": eos}
        names = sorted((name for name in control if len(name) > 1), key=len, reverse=True)
        self._names = re.compile(f"(?=({'|'.join(map(re.escape, names))}))") if names else None
        self._starts = {name[:n] for name in names for n in range(1, len(name))}
        self._longest = max(map(len, names), default=0)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], loader=None
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ValueError(f"the model's chat template cannot be read: {error}") from None
        self.knows_tools = bool(re.search(r"\btools\b", source))
        self.knows_developer = "developer" in source
        self.thinks = "<think>" in source

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool = True,
    ) -> list[str]:
        """The pieces of the prompt, each to be tokenized with control tokens and put one after another. Raises
        ApiError when the template refuses the messages."""
        own = [plain(message, self.knows_developer) for message in messages]
        given = [tool.model_dump(exclude_none=True) for tool in tools] if tools else None
        strings = list(_strings([own, given]))
        cut = next((c for c in _CUTS if not any(c in s for s in strings)), None)
        if cut is None:
            raise bad("The messages have too many different private characters in them.", "messages")
        own, given = self._marked(own, cut), self._marked(given, cut)
        try:
            text = self._render(own, given, add_generation_prompt)
        except TypeError:  # of templates that put arguments into the text as they come
            text = self._render([_text_arguments(m) for m in own], given, add_generation_prompt)
        return [piece for piece in text.split(cut) if piece]

    def _render(self, messages: Any, tools: Any, add_generation_prompt: bool) -> str:
        values = {"messages": messages, "add_generation_prompt": add_generation_prompt, **self._tokens}
        try:
            return self._template.render(values, tools=tools)
        except TypeError:
            if any("tool_calls" in m and _has_objects(m) for m in messages):
                raise
            raise bad("The model's chat template cannot render these messages.", "messages") from None
        except jinja2.TemplateError as error:
            reason = str(error.message or "").split("\n")[0][:200]
            message = f"The model's chat template refuses these messages: {reason}"
            raise bad(message, "messages", "template_refused") from None
        except Exception as error:
            message = f"The model's chat template cannot render these messages ({type(error).__name__})."
            raise bad(message, "messages", "template_refused") from None

    def _marked(self, value: Any, cut: str) -> Any:
        """value with marks in all of its texts."""
        if isinstance(value, str):
            return self.mark(value, cut)
        if isinstance(value, dict):
            return {self.mark(key, cut): self._marked(item, cut) for key, item in value.items()}
        if isinstance(value, list):
            return [self._marked(item, cut) for item in value]
        return value

    def mark(self, text: str, cut: str) -> str:
        """text with `cut` in every name of a control token, and after an end that could begin one."""
        if self._names is None:
            return text
        places = [match.start() + 1 for match in self._names.finditer(text)]
        if any(text.endswith(text[-n:]) and text[-n:] in self._starts for n in range(1, self._longest)):
            places.append(len(text))
        if not places:
            return text
        bounds = [0, *places, len(text)]
        return cut.join(text[a:b] for a, b in pairwise(bounds))


def content_text(message: Message) -> str:
    """The text of a message. Raises ApiError for parts that are not text."""
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    texts = []
    for part in message.content:
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in ("text", "input_text", "output_text", "refusal") or text is None:
            raise bad(f"This model reads text; it cannot take a part of type {part.type!r}.", "messages")
        texts.append(text)
    return "".join(texts)


def plain(message: Message, knows_developer: bool = True) -> dict[str, Any]:
    """A message as templates expect it: text for content, and objects for arguments."""
    role = {"function": "tool"}.get(message.role, message.role)
    if role == "developer" and not knows_developer:
        role = "system"
    found: dict[str, Any] = {"role": role, "content": content_text(message)}
    for key in ("name", "tool_call_id", "reasoning_content"):
        if getattr(message, key) is not None:
            found[key] = getattr(message, key)
    if message.tool_calls:
        found["tool_calls"] = [
            {
                "id": call.id or "",
                "type": "function",
                "function": {"name": call.function.name, "arguments": arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return found


def arguments(text: str) -> Any:
    """Arguments of a call as an object; as the text that they are when that is no object of JSON."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, dict) else text


def _text_arguments(message: dict[str, Any]) -> dict[str, Any]:
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": _as_text(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _has_objects(message: dict[str, Any]) -> bool:
    return any(isinstance(call["function"]["arguments"], dict) for call in message["tool_calls"])


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    # Not jinja2's own, which writes < as \u003c for HTML.
    separators = options.get("separators")
    sort_keys = bool(options.get("sort_keys", False))
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
