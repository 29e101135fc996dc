"""/v1/responses: making, showing and forgetting them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from .. import chat, fields, lanes, replies, response_input, sse
from ..answer import Said
from ..body import StrictRoute
from ..errors import ApiError, bad
from ..openapi import streamed
from ..response_input import Conversation
from ..response_items import Items, absent
from ..response_store import Kept
from ..run import collect, submit
from ..schemas.responses import (
    OutputMessage,
    ResponseDeleted,
    ResponsesEvent,
    ResponsesReply,
    ResponsesRequest,
)
from ..state import salt_of, state_of

_FIELDS = {"reasoning_effort": "reasoning.effort"}  # by their names in a chat

router = APIRouter(route_class=StrictRoute, tags=["OpenAI"])


@router.post("/responses", include_in_schema=False)
@router.post(
    "/v1/responses",
    response_model=ResponsesReply,
    responses=streamed(ResponsesEvent, "Named as their type, then [DONE]; with stream."),
)
async def create(request: ResponsesRequest, http: Request) -> Response:
    state = state_of(http)
    loaded = state.loaded
    if request.background:
        raise bad("background: this server answers at once; leave it out.", "background")
    fields.check(request, http)
    skipped = response_input.left_out(request)
    fields.ignored(http, *skipped)
    salt = salt_of(http)
    talk = await lanes.run(Conversation.of, request, state.responses, salt)
    made = await lanes.run(response_input.as_chat, request, talk.items)
    prepared = await chat.prepare(http, loaded, made, _FIELDS)
    run = await submit(loaded.engine, prepared, state.metrics, state.settings.request_timeout_s)

    def keep(found: ResponsesReply) -> bool:
        text, ids = found.model_dump_json(exclude=absent(found)).encode(), [item.id for item in found.output]
        return state.responses.keep(Kept(found.id, salt, request.previous_response_id, talk.own, text, ids))

    answer = Items(request, run, replies.head("resp_", state.settings.model_name), skipped, keep)
    if request.stream:
        return sse.response(http, run, answer.stream(sse.WATCHED * state.settings.ping_s))
    (whole,) = await collect(http, run)
    if whole.reasoning:
        answer.add(Said(whole.reasoning, reasoning=True))
    if whole.text or not whole.calls:
        answer.add(Said(whole.text))
    for call in whole.calls:
        answer.add(call)
    assert whole.done is not None
    texts = [item for item in answer.items if isinstance(item, OutputMessage)]
    if texts:
        answer.score(texts[0], whole.said)
    answer.end(whole.done)
    found = answer.reply(whole.done)
    return Response(found.model_dump_json(exclude=absent(found)), media_type="application/json")


@router.get("/responses/{id}", include_in_schema=False)
@router.get("/v1/responses/{id}", response_model=ResponsesReply)
async def show(id: str, http: Request) -> Response:
    found = state_of(http).responses.get(salt_of(http), id)
    if found is None:
        raise _missing(id)
    return Response(found.reply, media_type="application/json")


@router.delete("/responses/{id}", include_in_schema=False)
@router.delete("/v1/responses/{id}", response_model=ResponseDeleted)
async def forget(id: str, http: Request) -> ResponseDeleted:
    """Forgets a response, and those that go on from it."""
    if not state_of(http).responses.delete(salt_of(http), id):
        raise _missing(id)
    return ResponseDeleted(id=id)


def _missing(id: str) -> ApiError:
    message = f"Response with id {id[:64]!r} not found."
    return ApiError(404, message, type="invalid_request_error", param="id", code="response_not_found")
