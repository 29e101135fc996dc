"""The items of a response as they arrive, and the events that report them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from sse_starlette import ServerSentEvent

from . import custom_tools, replies, sse
from .errors import from_engine
from .pieces import CallPiece, Done, Reading, TextPiece, Tokens
from .run import Run, beats
from .schemas.responses import (
    CustomCall,
    FunctionCall,
    FunctionTool,
    Incomplete,
    InputDetails,
    OutputDetails,
    OutputItem,
    OutputMessage,
    OutputText,
    Reasoning,
    ReasoningText,
    ResponsesCustomTool,
    ResponsesError,
    ResponsesReply,
    ResponsesRequest,
    ResponsesUsage,
)


@dataclass
class Items:
    """The items of an answer as they arrive. keep: called with the whole answer at its end; returns whether it is
    kept."""

    request: ResponsesRequest
    run: Run
    head: replies.Head
    skipped: list[str]
    keep: Callable[[ResponsesReply], bool]
    items: list[OutputItem] = field(default_factory=list)
    number: int = 0

    def add(self, piece: TextPiece | CallPiece) -> OutputItem | None:
        """Puts a piece into the last item, or into a new one, which is returned."""
        last = self.items[-1] if self.items else None
        new: OutputItem
        if isinstance(piece, CallPiece):
            new = self._call(piece)
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

    def _call(self, piece: CallPiece) -> FunctionCall | CustomCall:
        if piece.name in self.run.prepared.custom:
            return CustomCall(
                id=replies.new_id("ctc_"),
                call_id=piece.id,
                name=piece.name,
                input=custom_tools.input_of(piece.arguments),
                status="completed",
            )
        return FunctionCall(
            id=replies.new_id("fc_"),
            call_id=piece.id,
            name=piece.name,
            arguments=piece.arguments,
            status="completed",
        )

    def end(self, done: Done) -> None:
        """Marks the last item as incomplete if the answer was cut."""
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
            previous_response_id=request.previous_response_id,
            store=request.store is not False,
            parallel_tool_calls=request.parallel_tool_calls is not False,
            temperature=request.temperature,
            top_p=request.top_p,
            text=_format(request),
            tool_choice="auto"
            if choice is None
            else choice
            if isinstance(choice, str)
            else choice.model_dump(),
            tools=_tools(request),
            truncation=request.truncation or "disabled",
            overflow=self.run.prepared.report,
            ignored=self.skipped or None,
        )
        if done is not None:
            found.usage, found.timings = _usage(done), replies.timings(done)
            found.store = found.store and self.keep(found)
        return found

    def score(self, item: OutputMessage, tokens: list[Any]) -> list[dict[str, Any]]:
        """Adds tokens' logprobs to an item, if they were requested, and returns them."""
        if self.request.top_logprobs is None:
            return []
        listed = replies.chat_logprobs(tokens, self.request.top_logprobs).content
        found = [one.model_dump() for one in listed]
        item.content[0].logprobs += found
        return found

    # ---- events --------------------------------------------------------------------------------------------

    def event(self, type: str, **fields: Any) -> ServerSentEvent:
        if "response" in fields:
            fields["response"] = fields["response"].model_dump(exclude=replies.absent(fields["response"]))
        found = {"type": type, "sequence_number": self.number, **fields}
        self.number += 1
        return sse.event(found, type)

    async def stream(self, quiet_s: float) -> AsyncIterator[ServerSentEvent]:
        """quiet_s: the longest time without an event."""
        yield self.event("response.created", response=self.reply(None, status="in_progress"))
        yield self.event("response.in_progress", response=self.reply(None, status="in_progress"))
        waiting: list[Any] = []  # tokens of the next text
        try:
            async for piece in beats(self.run, quiet_s, (TextPiece, CallPiece, Done)):
                if piece is None:
                    yield self.event("response.in_progress", response=self.reply(None, status="in_progress"))
                elif isinstance(piece, Reading) and self.request.return_progress:
                    progress = replies.progress(piece).model_dump()
                    yield self.event("response.prompt_progress", prompt_progress=progress)
                elif isinstance(piece, Tokens):
                    waiting += piece.tokens
                elif isinstance(piece, (TextPiece, CallPiece)):
                    for event in self._grow(piece, waiting):
                        yield event
                    waiting = []
                elif isinstance(piece, Done):
                    last = self.items[-1] if self.items else None
                    left = waiting if self.request.top_logprobs is not None else []
                    if last is None or (left and isinstance(last, OutputMessage)):
                        for event in self._grow(TextPiece(""), left):
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

    def _grow(self, piece: TextPiece | CallPiece, tokens: list[Any]) -> list[ServerSentEvent]:
        old = self.items[-1] if self.items else None
        new = self.add(piece)
        found = []
        if new is not None:
            if old is not None:
                found += self._close(len(self.items) - 2)
            found += self._open(new)
        index, item = len(self.items) - 1, self.items[-1]
        place = {"item_id": item.id, "output_index": index}
        if isinstance(item, FunctionCall):
            kind = "response.function_call_arguments.delta"
            found.append(self.event(kind, **place, delta=item.arguments))
        elif isinstance(item, CustomCall):
            found.append(self.event("response.custom_tool_call_input.delta", **place, delta=item.input))
        elif isinstance(piece, TextPiece) and (piece.text or tokens):
            kind = "reasoning_text" if piece.reasoning else "output_text"
            more = {"logprobs": self.score(item, tokens)} if isinstance(item, OutputMessage) else {}
            found.append(
                self.event(f"response.{kind}.delta", **place, content_index=0, delta=piece.text, **more)
            )
        return found

    def _open(self, item: OutputItem) -> list[ServerSentEvent]:
        index = len(self.items) - 1
        empty = item.model_dump() | {"status": "in_progress"}
        if isinstance(item, (FunctionCall, CustomCall)):
            empty["arguments" if isinstance(item, FunctionCall) else "input"] = ""
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
        elif isinstance(item, CustomCall):
            found.append(self.event("response.custom_tool_call_input.done", **place, input=item.input))
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


def _tools(request: ResponsesRequest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for tool in request.tools or ():
        if isinstance(tool, FunctionTool):
            found.append({"strict": None, "parameters": None, **tool.model_dump()})
        elif isinstance(tool, ResponsesCustomTool):
            found.append(tool.model_dump(exclude_none=True))
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
