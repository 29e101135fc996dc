"""Sessions: what is cached of a conversation, saved under a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from pyllama_long.engine import SessionInfo

from .. import fields, lanes, prompt, tools
from ..body import StrictRoute
from ..errors import ApiError, bad
from ..schemas.chat import ChatRequest
from ..schemas.sessions import SESSION_NAME, Deleted, Session, SessionList, SessionRequest
from ..state import Loaded, salt_of, state_of
from ..template_options import TemplateOptions
from .completions import tokens_of

router = APIRouter(route_class=StrictRoute, tags=["sessions"], prefix="/v1/sessions")
Name = Annotated[str, Path(pattern=SESSION_NAME)]


@router.get("", response_model=SessionList)
async def list_all(http: Request) -> SessionList:
    sessions = state_of(http).loaded.engine.sessions
    found = await _call("", sessions.list, salt_of(http))
    return SessionList(data=[_shown(info) for info in found])


@router.post("", response_model=Session)
async def save(request: SessionRequest, http: Request) -> Session:
    """Saves what is cached of a conversation, or of a prompt."""
    loaded = state_of(http).loaded
    if (request.messages is None) == (request.prompt is None):
        raise bad("Give messages or prompt.", "messages")
    fields.check(request, http, others=ChatRequest.model_fields)
    fields.ignored(http, *tools.left_out(request))
    tokens = await _tokens(http, loaded, request)
    info = await _call(request.name, loaded.engine.sessions.save, tokens, request.name, salt_of(http))
    return _shown(info)


@router.post("/{name}/restore", response_model=Session)
async def restore(name: Name, http: Request) -> Session:
    """Lets requests that begin with the session's text reuse it from now on."""
    sessions = state_of(http).loaded.engine.sessions
    return _shown(await _call(name, sessions.restore, name, salt_of(http)))


@router.delete("/{name}", response_model=Deleted)
async def delete(name: Name, http: Request) -> Deleted:
    await _call(name, state_of(http).loaded.engine.sessions.delete, name, salt_of(http))
    return Deleted(name=name)


async def _tokens(http: Request, loaded: Loaded, request: SessionRequest) -> list[int]:
    if request.messages is not None:
        options = TemplateOptions.of(http, loaded, request, request.messages)
        ends = request.messages[-1].role == "assistant" and request.continue_final_message is not True
        options = replace(options, answer=False) if ends else options
        return (await lanes.run(prompt.make, loaded, request.messages, options)).tokens
    assert request.prompt is not None
    return await lanes.run(partial(tokens_of, loaded, request.prompt, special=True))


async def _call(name: str, work: Callable[..., Any], *args: Any) -> Any:
    try:
        return await lanes.run(work, *args)
    except KeyError:
        raise ApiError(404, f"There is no session {name!r}.", param="name", code="no_session") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ApiError(507, f"The session cannot be kept on disk: {reason}.", code="disk") from None


def _shown(info: SessionInfo) -> Session:
    return Session(
        name=info.name,
        tokens=info.n_tokens,
        bytes=info.n_bytes,
        created=int(info.created),
        usable=info.usable,
    )
