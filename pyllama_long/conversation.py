"""Conversations in the shapes that chat templates accept: where system texts are, who may follow whom, and what tool
calls look like."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pyllama_long.json_values import loads

Message = dict[str, Any]

Calls = Literal["own", "single", "broken", "written", "text"]

_KINDS: tuple[Calls, ...] = ("own", "single", "broken", "written", "text")
_MAX_DEPTH = 64  # levels of nesting in arguments that are read
_BETWEEN = "\n\n"  # put between texts that are joined


@dataclass(frozen=True)
class Shape:
    """systems: system texts are left where they are, joined into one message at the beginning, or put before the
    first user's text. merged: no two messages of one role follow each other. tools: calls and results are left as
    they are; or one call at a time is followed by its result; or they are text where arguments are not an object; or
    calls (and only calls) are as the model writes them; or all are text. parts: content is a list."""

    systems: Literal["own", "first", "user"]
    merged: bool
    tools: Calls
    parts: bool

    def applied(
        self,
        messages: Sequence[Message],
        tools: Any,
        written: Callable[[str, str], str],
        told: Callable[[Any], str],
        own: Callable[[Sequence[tuple[str, Any]]], str],
    ) -> tuple[list[Message], Any]:
        """Brings messages and tools into this shape; the given ones are not changed."""
        found, noted = [dict(message) for message in messages], self.tools == "text" and bool(tools)
        if self.tools == "single":
            found = _one_at_a_time(found)
        if self.tools == "written":
            found = _with_calls_written(found, own)
        if self.tools in ("broken", "text"):
            found = _with_calls_as_text(found, written, self.tools == "text")
        if noted:
            note: Message = {"role": "system", "content": told(tools)}
            at = 1 if found[0]["role"] in ("system", "developer") else 0
            found.insert(at, note)
            tools = None
        if self.systems != "own" or noted:
            found = _systems_first(found)
        if self.systems == "user" and found[0]["role"] == "system":
            found = _system_in_user(found)
        if self.merged:
            found = _merged(found)
        if self.parts:
            found = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in found]
        return found, tools


def shapes(messages: Sequence[Message], knows_calls: bool) -> Iterator[Shape]:
    """The shapes to try, the one nearest to the conversation itself first."""
    kinds: list[Calls] = ["text"]
    if knows_calls:
        several = any(len(message.get("tool_calls", ())) > 1 for message in messages)
        broken = any(not isinstance(value, dict) for value in arguments_of(messages))
        some = any(message.get("tool_calls") for message in messages)
        skipped = {"single": not several, "broken": not broken, "written": not some}
        kinds = [kind for kind in _KINDS if not skipped.get(kind)]
    for parts in (False, True):
        for tools in kinds:
            yield Shape("own", False, tools, parts)
            yield Shape("first", False, tools, parts)
            yield Shape("own", True, tools, parts)
            yield Shape("first", True, tools, parts)
            yield Shape("user", False, tools, parts)
            yield Shape("user", True, tools, parts)


def prepared(messages: Sequence[Mapping[str, Any]], knows_developer: bool, id_form: str) -> list[Message]:
    """Gives messages text as content, objects as arguments if they are objects, and results the ids of their
    calls."""
    found: list[Message] = []
    waiting: list[tuple[str, str, str]] = []  # (given id, id, name) of calls without a result
    n_calls = 0
    for message in messages:
        role = {"function": "tool"}.get(message["role"], message["role"])
        if role == "developer" and not knows_developer:
            role = "system"
        own: Message = {"role": role, "content": message.get("content") or ""}
        for key in ("name", "tool_call_id", "reasoning_content"):
            if message.get(key) is not None:
                own[key] = message[key]
        calls = []
        for call in message.get("tool_calls") or ():
            function = call["function"]
            given = call.get("id") or f"call_{n_calls}"
            id = _id(given, function["name"], n_calls, id_form)
            waiting.append((given, id, function["name"]))
            body = {"name": function["name"], "arguments": arguments(function.get("arguments") or "{}")}
            calls.append({"id": id, "type": "function", "function": body})
            n_calls += 1
        if calls:
            own["tool_calls"] = calls
        if role == "tool":
            _refer(own, waiting, id_form)
        found.append(own)
    return found


def _refer(result: Message, waiting: list[tuple[str, str, str]], id_form: str) -> None:
    """Gives a result the id and the name of its call: the one that it names, else the first without a result."""
    given = result.get("tool_call_id")
    match = next((call for call in waiting if call[0] == given), None)
    if match is None and given is None and waiting:
        match = waiting[0]
    if match is not None:
        waiting.remove(match)
        result["tool_call_id"] = match[1]
        result.setdefault("name", match[2])
    elif given is not None:
        result["tool_call_id"] = _id(given, result.get("name", ""), 0, id_form)


def id_form(source: str) -> str:
    """The form of ids that a template requires: nine, Mistral's nine letters and digits; numbered, Kimi's name and
    number; or any."""
    if re.search(r"length\s*[!=]=\s*9\b", source):
        return "nine"
    return "numbered" if "<|tool_call_argument_begin|>" in source else "any"


def _id(given: str, name: str, number: int, form: str) -> str:
    if form == "nine" and not re.fullmatch("[a-zA-Z0-9]{9}", given):
        return hashlib.sha256(given.encode(errors="replace")).hexdigest()[:9]
    if form == "numbered" and not re.fullmatch(r"(functions\.)?[\w.-]+:\d+", given):
        return f"functions.{name}:{number}"
    return given


def arguments(text: Any) -> Any:
    """Arguments of a call as an object. They stay text if they are not a JSON object, or one that would not survive a
    prompt or an answer: nested too deeply, or with half of a surrogate pair in it."""
    if isinstance(text, dict):
        return text
    try:
        found = loads(text or "{}")
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, dict) and _is_flat(found, _MAX_DEPTH) else text


def _is_flat(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_flat(one, levels - 1) for one in inner)


def arguments_of(messages: Sequence[Message]) -> list[Any]:
    return [call["function"]["arguments"] for m in messages for call in m.get("tool_calls", ())]


def with_text_arguments(messages: Sequence[Message]) -> list[Message]:
    """The same messages with JSON text as arguments of calls."""
    found = []
    for message in messages:
        if "tool_calls" in message:
            calls = [
                {**call, "function": {**call["function"], "arguments": _json(call["function"]["arguments"])}}
                for call in message["tool_calls"]
            ]
            message = {**message, "tool_calls": calls}
        found.append(message)
    return found


def reasoning_key(source: str) -> str:
    """The key at which a template looks for a message's reasoning."""
    if "reasoning_content" not in source:
        for key in ("thinking", "reasoning"):
            if re.search(rf"message(\.{key}\b|\[['\"]{key}['\"]\])", source):
                return key
    return "reasoning_content"


def with_reasoning(messages: Sequence[Message], key: str) -> Sequence[Message]:
    """The same messages with reasoning at the key. With calls, gpt-oss's template accepts either reasoning or a text,
    not both: there they are joined, since both are written before the calls."""
    if key == "reasoning_content":
        return messages
    found = []
    for message in messages:
        if message.get("reasoning_content"):
            message = {**message, key: message["reasoning_content"]}
            del message["reasoning_content"]
            if key == "thinking" and message.get("tool_calls") and message["content"]:
                message = {**message, key: _BETWEEN.join((message[key], message["content"])), "content": ""}
        found.append(message)
    return found


def described(tools: Any) -> Any:
    """The same tools, with an empty description added to tools and parameters that have none."""
    found = []
    for tool in tools or ():
        function = {"description": "", **tool["function"]}
        parameters = function.get("parameters")
        if isinstance(parameters, dict) and isinstance(parameters.get("properties"), dict):
            properties = {
                name: {"description": "", **value} if isinstance(value, dict) else value
                for name, value in parameters["properties"].items()
            }
            function["parameters"] = {**parameters, "properties": properties}
        found.append({**tool, "function": function})
    return found or tools


def as_text(name: str, arguments: str) -> str:
    """A call as text, for templates without calls."""
    return f'<tool_call>\n{{"name": {_json_text(name)}, "arguments": {arguments}}}\n</tool_call>'


def all_as_text(calls: Sequence[tuple[str, Any]]) -> str:
    return "\n".join(as_text(name, _json(given)) for name, given in calls)


def instructions(tools: Sequence[Mapping[str, Any]]) -> str:
    """The text that describes tools to models whose template knows none."""
    listed = "\n".join(_json_text(tool["function"]) for tool in tools)
    return (
        f"You can call these functions:\n{listed}\n\nTo call one, write\n<tool_call>\n"
        '{"name": NAME, "arguments": {...}}\n</tool_call>'
    )


def _with_calls_as_text(
    messages: Sequence[Message], written: Callable[[str, str], str], every: bool
) -> list[Message]:
    """every: change all calls and results; else only those whose arguments are not an object."""
    found: list[Message] = []
    told: set[str] = set()
    for message in messages:
        calls = message.get("tool_calls")
        if calls and (every or any(not isinstance(a, dict) for a in arguments_of([message]))):
            texts = [written(c["function"]["name"], _json(c["function"]["arguments"])) for c in calls]
            text = "\n".join(t for t in (message["content"], *texts) if t)
            told.update(call["id"] for call in calls)
            found.append({**{k: v for k, v in message.items() if k != "tool_calls"}, "content": text})
        elif message["role"] == "tool" and (every or message.get("tool_call_id") in told):
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            found.append({"role": "user", "content": text})
        else:
            found.append(message)
    return found


def _with_calls_written(
    messages: Sequence[Message], own: Callable[[Sequence[tuple[str, Any]]], str]
) -> list[Message]:
    found = []
    for message in messages:
        calls = [(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls", ())]
        if calls:
            message = {k: v for k, v in message.items() if k != "tool_calls"}
            message["content"] += own(calls)
        found.append(message)
    return found


def _one_at_a_time(messages: Sequence[Message]) -> list[Message]:
    """Puts each call into a message of its own, before its result."""
    found: list[Message] = []
    taken: set[int] = set()
    for i, message in enumerate(messages):
        calls = message.get("tool_calls", ())
        if i in taken:
            continue
        if len(calls) < 2:
            found.append(message)
            continue
        rest = {k: v for k, v in message.items() if k != "reasoning_content"}
        for n, call in enumerate(calls):
            found.append({**(rest if n else message), "content": "" if n else message["content"]})
            found[-1]["tool_calls"] = [call]
            for j in range(i + 1, len(messages)):
                if messages[j]["role"] != "tool":
                    break
                if j not in taken and messages[j].get("tool_call_id") == call["id"]:
                    taken.add(j)
                    found.append(messages[j])
                    break
    return found


def _systems_first(messages: Sequence[Message]) -> list[Message]:
    texts = [m["content"] for m in messages if m["role"] in ("system", "developer") and m["content"]]
    rest = [m for m in messages if m["role"] not in ("system", "developer")]
    return [*([{"role": "system", "content": _BETWEEN.join(texts)}] if texts else []), *rest]


def _system_in_user(messages: Sequence[Message]) -> list[Message]:
    system, *rest = messages
    for i, message in enumerate(rest):
        if message["role"] == "user":
            text = f"{system['content']}{_BETWEEN}{message['content']}"
            return [*rest[:i], {**message, "content": text}, *rest[i + 1 :]]
    return [{"role": "user", "content": system["content"]}, *rest]


def _merged(messages: Sequence[Message]) -> list[Message]:
    found: list[Message] = []
    for message in messages:
        last = found[-1] if found else None
        if last is None or not _belongs(last, message):
            found.append(message)
            continue
        text = _BETWEEN.join(t for t in (last["content"], message["content"]) if t)
        found[-1] = {**last, "content": text}
        if "tool_calls" in message:
            found[-1]["tool_calls"] = [*last.get("tool_calls", ()), *message["tool_calls"]]
    return found


def _belongs(last: Message, message: Message) -> bool:
    """Whether a message continues the one before it: it has the same role, or is a text after a tool's result."""
    if message["role"] == last["role"] == "tool":
        return False  # each belongs to a call of its own
    same = message["role"] == last["role"] and "tool_calls" not in last
    return same or (message["role"], last["role"]) == ("user", "tool")


def _json(value: Any) -> str:
    return value if isinstance(value, str) else _json_text(value)


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
