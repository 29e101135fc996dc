"""/v1/responses: makes, shows and deletes them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from .. import chat_request, fields, lanes, replies, response_input, sse
from ..body import StrictRoute
from ..delivery import deliver
from ..errors import ApiError, bad
from ..openapi import streamed
from ..pieces import TextPiece
from ..response_input import Conversation
from ..response_items import Items
from ..response_store import Kept
from ..run import Run
from ..schemas.responses import (
    OutputMessage,
    ResponseDeleted,
    ResponsesEvent,
    ResponsesReply,
    ResponsesRequest,
)
from ..state import salt_of, state_of
from ..whole import Whole

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
    prepared = await chat_request.prepare(http, loaded, made, _FIELDS)
    head = replies.head("resp_", state.settings.model_name)

    def keep(found: ResponsesReply) -> bool:
        text, ids = _json(found), [item.id for item in found.output]
        return state.responses.keep(Kept(found.id, salt, request.previous_response_id, talk.own, text, ids))

    def items(run: Run) -> Items:
        return Items(request, run, head, skipped, keep)

    return await deliver(
        http,
        loaded,
        prepared,
        streams=request.stream,
        events=lambda run: items(run).stream(sse.WATCHED * state.settings.ping_s),
        reply=lambda run, wholes: reply(items(run), wholes[0]),
    )


def reply(answer: Items, whole: Whole) -> Response:
    if whole.reasoning:
        answer.add(TextPiece(whole.reasoning, reasoning=True))
    if whole.text or not whole.calls:
        answer.add(TextPiece(whole.text))
    for call in whole.calls:
        answer.add(call)
    assert whole.done is not None
    texts = [item for item in answer.items if isinstance(item, OutputMessage)]
    if texts:
        answer.score(texts[0], whole.said)
    answer.end(whole.done)
    return Response(_json(answer.reply(whole.done)), media_type="application/json")


def _json(found: ResponsesReply) -> bytes:
    return found.model_dump_json(exclude=replies.absent(found)).encode()


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
    """Deletes a response, and those that continue it."""
    if not state_of(http).responses.delete(salt_of(http), id):
        raise _missing(id)
    return ResponseDeleted(id=id)


def _missing(id: str) -> ApiError:
    message = f"Response with id {id[:64]!r} not found."
    return ApiError(404, message, type="invalid_request_error", param="id", code="response_not_found")
