"""POST /v1/responses."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pyllama_long.server import chat, fields, replies, response_input, sse
from pyllama_long.server.answer import Said
from pyllama_long.server.body import StrictRoute
from pyllama_long.server.errors import bad
from pyllama_long.server.openapi import streamed
from pyllama_long.server.response_items import Items, absent
from pyllama_long.server.run import collect, submit
from pyllama_long.server.schemas.responses import (
    OutputMessage,
    ResponsesEvent,
    ResponsesReply,
    ResponsesRequest,
)
from pyllama_long.server.state import state_of

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
    if request.previous_response_id is not None or request.background:
        field = "background" if request.background else "previous_response_id"
        raise bad(f"{field}: this server keeps no responses; send the whole conversation.", field)
    fields.check(request, http)
    skipped = response_input.left_out(request)
    fields.ignored(http, *skipped)
    made = response_input.as_chat(request, response_input.own_items(request))
    prepared = await chat.prepare(http, loaded, made, _FIELDS)
    run = await submit(loaded.engine, prepared, state.metrics, state.settings.request_timeout_s)
    answer = Items(request, run, replies.head("resp_", state.settings.model_name), skipped)
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
