"""The tools of a request: those that may be called, and those that are left out of the prompt."""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import bad
from .schemas.conversation import (
    AllowedChoice,
    CustomFormat,
    CustomTool,
    NamedCustom,
    NamedTool,
    OtherTool,
    Talk,
    Tool,
)


@dataclass(frozen=True)
class Tools:
    """The tools that may be called; forced: one must be. custom: names of those that take one text."""

    tools: list[Tool] = field(default_factory=list)
    forced: bool = False
    custom: frozenset[str] = frozenset()

    @staticmethod
    def of(request: Talk) -> Tools:
        given, choice = request.tools or [], request.tool_choice
        tools = [
            tool.as_function() if isinstance(tool, CustomTool) else tool
            for tool in given
            if not isinstance(tool, OtherTool)
        ]
        custom = frozenset(tool.custom.name for tool in given if isinstance(tool, CustomTool))
        if isinstance(choice, (NamedTool, NamedCustom)):
            named = [tool for tool in tools if tool.function.name == choice.name]
            if not named:
                raise bad(f"tool_choice: there is no tool {choice.name!r}.", "tool_choice")
            return Tools(named, True, custom)
        if isinstance(choice, AllowedChoice):
            listed = choice.allowed_tools.tools
            allowed = {one.name for one in listed if isinstance(one, (NamedTool, NamedCustom))}
            tools, choice = [t for t in tools if t.function.name in allowed], choice.allowed_tools.mode
        if choice == "required" and not tools:
            raise bad(
                "tool_choice is required, and there are no tools that this server knows.", "tool_choice"
            )
        return Tools([] if choice == "none" else tools, choice == "required", custom)


def left_out(request: Talk) -> list[str]:
    """Names of tools that are left out of the prompt, and of grammars that only the prompt describes."""
    found = []
    for i, tool in enumerate(request.tools or ()):
        if isinstance(tool, OtherTool):
            found.append(f"tools.{i}.{tool.type}")
        elif isinstance(tool, CustomTool) and is_told(tool.custom.format):
            found.append(f"tools.{i}.custom.format")
    return found


def is_told(form: CustomFormat | None) -> bool:
    """Whether a grammar is only described to the model, not enforced: a Lark grammar of a text cannot describe JSON
    that contains the text."""
    rules = None if form is None else form.rules
    return rules is not None and rules.syntax == "lark"
