"""/v1/sessions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .common import Reply, Tokens
from .conversation import Message, Talk

SESSION_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"


class SessionRequest(Talk):
    """Saves what is cached of a prompt; give messages or prompt."""

    name: str = Field(pattern=SESSION_NAME)
    messages: Annotated[list[Message], Field(min_length=1, max_length=100_000)] | None = None
    prompt: str | Tokens | None = None


class Session(Reply):
    name: str
    object: Literal["session"] = "session"
    tokens: int
    bytes: int
    created: int
    usable: bool = Field(description="Made under the model and the settings that run now.")


class SessionList(Reply):
    object: Literal["list"] = "list"
    data: list[Session]


class Deleted(Reply):
    name: str
    object: Literal["session"] = "session"
    deleted: bool = True
