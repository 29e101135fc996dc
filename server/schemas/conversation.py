"""Messages and tools, and other fields of a conversation for the model's template."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from .common import MAX_TOOLS, Body, JsonObject, Open

TEXTS = ("text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text")  # types of parts
NAME = r"^[a-zA-Z0-9_.-]+$"  # of a tool


def kind_of(given: Any) -> str:
    """Finds out which kind of tool or call is meant, so that errors are about that one."""
    kind = given.get("type", "function") if isinstance(given, dict) else getattr(given, "type", "")
    return (
        {"function": "Function", "custom": "Custom"}.get(kind, "Other") if isinstance(kind, str) else "Other"
    )


class Part(Body):
    """A part of a message; only text can be read."""

    harmless: ClassVar[frozenset[str]] = frozenset({"annotations", "cache_control", "logprobs"})

    type: str = Field(max_length=64)
    text: str | None = None
    refusal: str | None = None

    @property
    def is_read(self) -> bool:
        return self.type in TEXTS


class CalledFunction(Body):
    name: str = Field(min_length=1, max_length=256)
    arguments: str = ""


class CallInput(Body):
    harmless: ClassVar[frozenset[str]] = frozenset({"index"})

    id: str | None = Field(None, max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction


class CalledCustom(Body):
    name: str = Field(min_length=1, max_length=256)
    input: str = ""


class CustomCallInput(Body):
    harmless: ClassVar[frozenset[str]] = frozenset({"index"})

    id: str | None = Field(None, max_length=256)
    type: Literal["custom"]
    custom: CalledCustom


AnyCall = Annotated[
    Annotated[CallInput, Tag("Function")] | Annotated[CustomCallInput, Tag("Custom")], Discriminator(kind_of)
]


class Message(Body):
    harmless: ClassVar[frozenset[str]] = frozenset({"annotations", "cache_control", "id"})

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    refusal: str | None = Field(None, description="Of an assistant; its text where there is no content.")
    name: str | None = Field(None, max_length=256)
    tool_calls: Annotated[list[AnyCall], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: str | None = Field(None, max_length=256)
    reasoning_content: str | None = None


class Function(Body):
    name: str = Field(min_length=1, max_length=64, pattern=NAME)
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(Body):
    harmless: ClassVar[frozenset[str]] = frozenset({"cache_control"})

    type: Literal["function"]
    function: Function


class CustomGrammar(Body):
    syntax: Literal["lark", "regex"]
    definition: str = Field(max_length=65536)


class CustomFormat(Body):
    """The format of a custom tool's input. A chat has the grammar in an object of its own, a response next to the
    type."""

    type: Literal["text", "grammar"]
    grammar: CustomGrammar | None = None
    syntax: Literal["lark", "regex"] | None = None
    definition: str | None = Field(None, max_length=65536)

    @model_validator(mode="after")
    def _whole(self) -> CustomFormat:
        if self.type == "grammar" and self.rules is None:
            raise ValueError("a grammar needs a syntax and a definition")
        return self

    @property
    def rules(self) -> CustomGrammar | None:
        if self.grammar is None and self.syntax is not None and self.definition is not None:
            return CustomGrammar(syntax=self.syntax, definition=self.definition)
        return self.grammar if self.type == "grammar" else None


class Custom(Body):
    name: str = Field(min_length=1, max_length=64, pattern=NAME)
    description: str | None = None
    format: CustomFormat | None = None


class CustomTool(Body):
    """A tool whose input is one text."""

    harmless: ClassVar[frozenset[str]] = frozenset({"cache_control"})

    type: Literal["custom"]
    custom: Custom

    def as_function(self) -> Tool:
        """The tool as a function of `input`, with a description of its form if it has one; an expression is also
        enforced."""
        told, form = self.custom.description, self.custom.format
        rules = None if form is None else form.rules
        text: JsonObject = {"type": "string"}
        if rules is not None:
            kind = "Lark grammar" if rules.syntax == "lark" else "regular expression"
            told = f"{told or ''}\n\nThe input is text of this {kind}:\n{rules.definition}".strip()
            if rules.syntax == "regex":
                text["pattern"] = f"^({rules.definition})$"
        made: JsonObject = {"type": "object", "properties": {"input": text}, "required": ["input"]}
        return Tool(
            type="function", function=Function(name=self.custom.name, description=told, parameters=made)
        )


class OtherTool(Body):
    """A tool that OpenAI's servers run, or that only some models know."""

    type: str = Field(min_length=1, max_length=64)
    name: str | None = None

    @field_validator("type")
    @classmethod
    def _other(cls, given: str) -> str:
        if given in ("function", "custom"):
            raise ValueError(f"a tool of type {given} needs a name")
        return given

    @property
    def is_read(self) -> bool:
        return False


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction

    @property
    def name(self) -> str:
        return self.function.name


class NamedCustom(Body):
    type: Literal["custom"]
    custom: NamedFunction

    @property
    def name(self) -> str:
        return self.custom.name


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: list[NamedTool | NamedCustom | OtherTool] = Field(max_length=MAX_TOOLS)


class AllowedChoice(Body):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


F = TypeVar("F")
C = TypeVar("C")
# A tool of an API that has functions in the form F, and tools of one text in the form C.
OneTool = Annotated[
    Annotated[F, Tag("Function")] | Annotated[C, Tag("Custom")] | Annotated[OtherTool, Tag("Other")],
    Discriminator(kind_of),
]
AnyTool = OneTool[Tool, CustomTool]


class Talk(Open):
    """Fields of a conversation for the model's template, besides its messages."""

    tools: Annotated[list[AnyTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | NamedCustom | AllowedChoice | None = None
    add_generation_prompt: bool | None = Field(
        None, description="false: the prompt ends with the last message."
    )
    continue_final_message: bool | None = Field(
        None, description="false: a last message of the assistant is not continued, but followed by another."
    )
    chat_template_kwargs: JsonObject | None = Field(
        None, description="Names that the model's template reads."
    )
    enable_thinking: bool | None = None
    reasoning_effort: str | None = Field(None, max_length=64)

    @field_validator("tools")
    @classmethod
    def _distinct(cls, tools: list[AnyTool] | None) -> list[AnyTool] | None:
        names = [tool.function.name for tool in tools or () if isinstance(tool, Tool)]
        names += [tool.custom.name for tool in tools or () if isinstance(tool, CustomTool)]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        return tools


def as_input(messages: list[dict[str, Any]]) -> list[Message]:
    """Messages converted from another API."""
    return [Message.model_validate(message) for message in messages]
