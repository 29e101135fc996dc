"""POST /v1/responses."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sse_starlette import ServerSentEvent

from pyllama_long.server import chat, fields, replies, sse
from pyllama_long.server.answer import Called, Said
from pyllama_long.server.body import StrictRoute
from pyllama_long.server.errors import bad, converting, from_engine
from pyllama_long.server.grammar import json_text
from pyllama_long.server.openapi import streamed
from pyllama_long.server.run import Done, Reading, Run, Tokens, beats, collect, submit
from pyllama_long.server.schemas.chat import ChatRequest
from pyllama_long.server.schemas.responses import (
    AllowedChoice,
    FunctionCall,
    FunctionTool,
    Incomplete,
    InputDetails,
    InputItem,
    InputPart,
    NamedChoice,
    OtherTool,
    OutputDetails,
    OutputItem,
    OutputMessage,
    OutputText,
    Reasoning,
    ReasoningText,
    ResponsesError,
    ResponsesEvent,
    ResponsesReply,
    ResponsesRequest,
    ResponsesUsage,
)
from pyllama_long.server.state import state_of

# Items about tools that are left out; nothing of theirs was said by this model.
_LEFT_OUT = {
    *("web_search_call file_search_call code_interpreter_call image_generation_call mcp_list_tools".split()),
    *("mcp_call mcp_approval_request mcp_approval_response computer_call computer_call_output".split()),
    *("local_shell_call local_shell_call_output shell_call shell_call_output".split()),
    *("apply_patch_call apply_patch_call_output compaction".split()),
}

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
    skipped = _skipped(request)
    fields.ignored(http, *skipped)
    prepared = await chat.prepare(http, loaded, as_chat(request))
    run = await submit(loaded.engine, prepared, state.metrics, state.settings.request_timeout_s)
    answer = _Answer(request, run, replies.head("resp_", state.settings.model_name), skipped)
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
    return Response(found.model_dump_json(exclude=_absent(found)), media_type="application/json")


@converting()
def as_chat(request: ResponsesRequest) -> ChatRequest:
    """The same request in the shape of a chat."""
    messages: list[dict[str, Any]] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    items = (
        [InputItem(role="user", content=request.input)] if isinstance(request.input, str) else request.input
    )
    for item in items:
        _add(messages, item)
    made = request.model_dump(
        include={
            *(
                "temperature top_p top_k min_p typical_p repeat_penalty presence_penalty frequency_penalty".split()
            ),
            *("seed attention rope overflow priority parallel_tool_calls top_logprobs".split()),
        },
        exclude_none=True,
    )
    made["messages"] = messages
    made["max_completion_tokens"] = request.max_output_tokens
    if request.top_logprobs is not None:
        made["logprobs"] = True
    if request.truncation == "auto" and request.overflow is None:
        made["overflow"] = "shift"  # what OpenAI does under that name
    if functions := _functions(request):
        made["tools"] = [
            {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
            for tool in functions
        ]
    choice = request.tool_choice
    if isinstance(choice, AllowedChoice):
        named = [_named(one.name) for one in choice.tools if isinstance(one, NamedChoice)]
        allowed = {"mode": choice.mode, "tools": named}
        made["tool_choice"] = {"type": "allowed_tools", "allowed_tools": allowed}
    elif choice is not None:
        made["tool_choice"] = choice if isinstance(choice, str) else _named(choice.name)
    form = request.text.format if request.text is not None else None
    if form is not None:
        made["response_format"] = {"type": form.type}
        if form.type == "json_schema":
            made["response_format"]["json_schema"] = {"name": form.name, "schema": form.schema_}
    if not messages:
        raise bad("input: there is no message in it.", "input")
    return ChatRequest.model_validate(made)


def _named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def _functions(request: ResponsesRequest) -> list[FunctionTool]:
    return [tool for tool in request.tools or () if isinstance(tool, FunctionTool)]


def _skipped(request: ResponsesRequest) -> list[str]:
    """Names of what is left out of the prompt."""
    tools = (
        f"tools.{i}.{tool.type}" for i, tool in enumerate(request.tools or ()) if isinstance(tool, OtherTool)
    )
    items = request.input if isinstance(request.input, list) else []
    return [*tools, *(f"input.{i}.{item.type}" for i, item in enumerate(items) if item.type in _LEFT_OUT)]


def _absent(found: ResponsesReply) -> set[str]:
    """Fields of ours that have nothing to say."""
    return {name for name in ("overflow", "ignored") if getattr(found, name) is None}


def _add(messages: list[dict[str, Any]], item: InputItem) -> None:
    if item.type in ("function_call", "custom_tool_call"):
        if not item.name:
            raise bad(f"input: a {item.type} needs a name.", "input")
        if item.type == "custom_tool_call":
            item = item.model_copy(update={"arguments": json_text({"input": item.input or ""})})
        call = {
            "id": item.call_id,
            "type": "function",
            "function": {"name": item.name, "arguments": item.arguments or ""},
        }
        if messages and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("tool_calls", []).append(call)
        else:
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
    elif item.type in ("function_call_output", "custom_tool_call_output"):
        messages.append({"role": "tool", "content": _parts(item.output), "tool_call_id": item.call_id})
    elif item.type in (None, "message"):
        if item.role is None:
            raise bad("input: a message needs a role.", "input")
        messages.append({"role": item.role, "content": _parts(item.content)})
    elif item.type == "item_reference":
        message = "input: this server keeps no items: send them whole (store: false in the client's options)."
        raise bad(message, "input", "item_not_found")
    elif item.type != "reasoning" and item.type not in _LEFT_OUT:
        raise bad(f"input: this server cannot take items of type {item.type!r}.", "input")


def _parts(content: str | list[InputPart] | None) -> Any:
    """What the template makes text of, with notes for what is none."""
    if content is None or isinstance(content, str):
        return content or ""
    return [part.model_dump(include={"type", "text", "refusal"}) for part in content]


@dataclass
class _Answer:
    """The items of an answer as they come."""

    request: ResponsesRequest
    run: Run
    head: replies.Head
    skipped: list[str]
    items: list[OutputItem] = field(default_factory=list)
    number: int = 0

    def add(self, piece: Said | Called) -> OutputItem | None:
        """Puts a piece into the last item, or into a new one, which is returned."""
        last = self.items[-1] if self.items else None
        if isinstance(piece, Called):
            new: OutputItem = FunctionCall(
                id=replies.new_id("fc_"),
                call_id=piece.id,
                name=piece.name,
                arguments=piece.arguments,
                status="completed",
            )
        elif piece.reasoning:
            if isinstance(last, Reasoning):
                last.content[0].text += piece.text
                return None
            part = ReasoningText(text=piece.text)
            new = Reasoning(id=replies.new_id("rs_"), content=[part], status="completed")
        else:
            if isinstance(last, OutputMessage):
                last.content[0].text += piece.text
                return None
            text = OutputText(text=piece.text)
            new = OutputMessage(id=replies.new_id("msg_"), status="completed", content=[text])
        self.items.append(new)
        return new

    def end(self, done: Done) -> None:
        """The last item is incomplete where the answer was cut."""
        if done.reason == "length" and self.items:
            self.items[-1].status = "incomplete"

    def reply(self, done: Done | None, status: Any = None) -> ResponsesReply:
        request = self.request
        cut = done is not None and done.reason == "length"
        choice = request.tool_choice
        found = ResponsesReply(
            id=self.head.id,
            created_at=self.head.created,
            completed_at=int(time.time()) if done is not None and not cut else None,
            model=self.head.model,
            status=status or ("incomplete" if cut else "completed"),
            incomplete_details=Incomplete(reason="max_output_tokens") if cut else None,
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            metadata=request.metadata or {},
            output=self.items,
            parallel_tool_calls=request.parallel_tool_calls is not False,
            temperature=request.temperature,
            top_p=request.top_p,
            text=_format(request),
            tool_choice="auto"
            if choice is None
            else choice
            if isinstance(choice, str)
            else choice.model_dump(),
            tools=[{"strict": None, "parameters": None, **t.model_dump()} for t in _functions(request)],
            truncation=request.truncation or "disabled",
            overflow=self.run.prepared.report,
            ignored=self.skipped or None,
        )
        if done is not None:
            found.usage, found.timings = _usage(done), replies.timings(done)
        return found

    def score(self, item: OutputMessage, tokens: list[Any]) -> list[dict[str, Any]]:
        """Adds tokens' logprobs to an item, where they were asked for, and returns them."""
        if self.request.top_logprobs is None:
            return []
        listed = replies.chat_logprobs(tokens, self.request.top_logprobs).content
        found = [one.model_dump() for one in listed]
        item.content[0].logprobs += found
        return found

    # ---- events --------------------------------------------------------------------------------------------

    def event(self, type: str, **fields: Any) -> ServerSentEvent:
        if "response" in fields:
            fields["response"] = fields["response"].model_dump(exclude=_absent(fields["response"]))
        found = {"type": type, "sequence_number": self.number, **fields}
        self.number += 1
        return sse.event(found, type)

    async def stream(self, quiet_s: float) -> AsyncIterator[ServerSentEvent]:
        """quiet_s: the longest time without an event."""
        yield self.event("response.created", response=self.reply(None, status="in_progress"))
        yield self.event("response.in_progress", response=self.reply(None, status="in_progress"))
        waiting: list[Any] = []  # tokens of the next text
        try:
            async for piece in beats(self.run, quiet_s, (Said, Called, Done)):
                if piece is None:
                    yield self.event("response.in_progress", response=self.reply(None, status="in_progress"))
                elif isinstance(piece, Reading) and self.request.return_progress:
                    progress = replies.progress(piece).model_dump()
                    yield self.event("response.prompt_progress", prompt_progress=progress)
                elif isinstance(piece, Tokens):
                    waiting += piece.tokens
                elif isinstance(piece, (Said, Called)):
                    for event in self._grow(piece, waiting):
                        yield event
                    waiting = []
                elif isinstance(piece, Done):
                    last = self.items[-1] if self.items else None
                    left = waiting if self.request.top_logprobs is not None else []
                    if last is None or (left and isinstance(last, OutputMessage)):
                        for event in self._grow(Said(""), left):
                            yield event
                    self.end(piece)
                    for event in self._close():
                        yield event
                    kind = "incomplete" if piece.reason == "length" else "completed"
                    yield self.event(f"response.{kind}", response=self.reply(piece))
        except Exception as error:
            found = from_engine(error)
            failed = self.reply(None, status="failed")
            code = str(found.error["code"] or found.error["type"])
            failed.error = ResponsesError(code=code, message=str(found.error["message"]))
            yield self.event("response.failed", response=failed)

    def _grow(self, piece: Said | Called, tokens: list[Any]) -> list[ServerSentEvent]:
        old = self.items[-1] if self.items else None
        new = self.add(piece)
        found = []
        if new is not None:
            if old is not None:
                found += self._close(len(self.items) - 2)
            found += self._open(new)
        index, item = len(self.items) - 1, self.items[-1]
        place = {"item_id": item.id, "output_index": index}
        if isinstance(piece, Called):
            kind = "response.function_call_arguments.delta"
            found.append(self.event(kind, **place, delta=piece.arguments))
        elif piece.text or tokens:
            kind = "reasoning_text" if piece.reasoning else "output_text"
            more = {"logprobs": self.score(item, tokens)} if isinstance(item, OutputMessage) else {}
            found.append(
                self.event(f"response.{kind}.delta", **place, content_index=0, delta=piece.text, **more)
            )
        return found

    def _open(self, item: OutputItem) -> list[ServerSentEvent]:
        index = len(self.items) - 1
        empty = item.model_dump() | {"status": "in_progress"}
        if isinstance(item, FunctionCall):
            empty["arguments"] = ""
            return [self.event("response.output_item.added", output_index=index, item=empty)]
        empty["content"] = []
        part = item.content[0].model_dump() | {"text": ""}
        place = {"item_id": item.id, "output_index": index, "content_index": 0}
        return [
            self.event("response.output_item.added", output_index=index, item=empty),
            self.event("response.content_part.added", **place, part=part),
        ]

    def _close(self, index: int = -1) -> list[ServerSentEvent]:
        index = index % len(self.items)
        item = self.items[index]
        place = {"item_id": item.id, "output_index": index}
        found = []
        if isinstance(item, FunctionCall):
            kind = "response.function_call_arguments.done"
            found.append(self.event(kind, **place, name=item.name, arguments=item.arguments))
        else:
            kind, part = ("reasoning_text" if isinstance(item, Reasoning) else "output_text"), item.content[0]
            more = {} if isinstance(item, Reasoning) else {"logprobs": item.content[0].logprobs}
            found.append(
                self.event(f"response.{kind}.done", **place, content_index=0, text=part.text, **more)
            )
            found.append(
                self.event("response.content_part.done", **place, content_index=0, part=part.model_dump())
            )
        found.append(self.event("response.output_item.done", output_index=index, item=item.model_dump()))
        return found


def _format(request: ResponsesRequest) -> dict[str, Any]:
    form = request.text.format if request.text is not None else None
    return {"format": {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)}


def _usage(done: Done) -> ResponsesUsage:
    used = done.usage
    return ResponsesUsage(
        input_tokens=used.n_prompt,
        input_tokens_details=InputDetails(cached_tokens=used.n_cached),
        output_tokens=used.n_completion,
        output_tokens_details=OutputDetails(reasoning_tokens=done.reasoning_tokens),
        total_tokens=used.n_prompt + used.n_completion,
    )
