"""Reads request bodies: with a size limit, and only JSON that has one meaning."""

from __future__ import annotations

import asyncio
import json
import math
import re
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from . import fields, lanes
from .errors import ApiError, bad, converting

_EXACT = 2**53  # whole numbers below it are exact as floats
MAX_DEPTH = 64  # nesting of arrays and objects
_DRAINED = 4  # up to this many times the limit is read and discarded, so that the client reads the answer
_BODY_S, _BODY_RATE = 60.0, 1 << 20  # seconds for a body, and bytes of the limit for one more
_IN_THREAD = 1 << 18  # bytes; parsing more than this does not stop other requests
_MARKS = re.compile(rb'"[^"]*"?|[\[{]|[\]}]|[,:]')
_MAX_VALUES = 4_000_000  # a value takes up to 30 times its text in memory
_MAX_FIELDS = 150_000  # fields and objects; a request is checked in one piece, at some microseconds for each
_LONG = re.compile(rb"\d{41}")  # possibly a number that is too large
_KIND = "pyllama_long.kind"  # of a request's scope: the model of its route
_CHECKING = threading.Lock()
_LONGEST_REST_S = 1.0
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse(data: bytes) -> Any:
    """Parses JSON in UTF-8. Raises ApiError for anything else: NaN, numbers beyond floats, duplicate keys, lone
    surrogates, more than MAX_DEPTH levels, and too many values or fields."""
    _check_shape(data)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise bad(f"The body is not UTF-8 (byte {error.start}).", code="invalid_json") from None
    try:
        value = json.loads(
            text,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int if _LONG.search(data) else None,
            object_pairs_hook=_object,
        )
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise bad("The JSON has half of a surrogate pair in a string.", code="invalid_json") from None
    except json.JSONDecodeError as error:
        message = f"The body is not valid JSON: {error.msg} at character {error.pos}."
        raise bad(message, code="invalid_json") from None
    except RecursionError:
        raise bad("The JSON is nested too deeply.", code="invalid_json") from None
    return value


def _check_shape(data: bytes) -> None:
    """Raises ApiError for more than MAX_DEPTH levels, _MAX_VALUES values or _MAX_FIELDS fields, before anything is
    built."""
    # Without escapes, a string ends at the next quote, which a regular expression finds without using memory.
    plain = data.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in data else data
    depth = values = n_fields = 0
    for match in _MARKS.finditer(plain):
        first = plain[match.start()]
        if first == 0x22:  # a string
            continue
        if first == 0x2C:  # a comma
            values += 1
        elif first == 0x3A:  # a colon
            n_fields += 1
        elif first in b"[{":
            values += 1
            n_fields += first == 0x7B
            depth += 1
            if depth > MAX_DEPTH:
                raise bad(f"The JSON is nested deeper than {MAX_DEPTH} levels.", code="invalid_json")
        else:
            depth -= 1
        if values > _MAX_VALUES:
            raise bad(f"The JSON has more than {_MAX_VALUES} values.", code="invalid_json")
        if n_fields > _MAX_FIELDS:
            raise bad(f"The JSON has more than {_MAX_FIELDS} objects and fields.", code="invalid_json")


def _constant(name: str) -> Any:
    raise bad(f"The JSON has {name} in it, which is not a number of JSON.", code="invalid_json")


def _float(text: str) -> float:
    """Accepts 2.0 as an integer, as JSON Schema and some clients do."""
    value = float(text)
    if not math.isfinite(value):
        raise bad("The JSON has a number that is too large.", code="invalid_json")
    return int(value) if value.is_integer() and abs(value) < _EXACT else value


def _int(text: str) -> int:
    if len(text) > 40:
        raise bad("The JSON has a number that is too large.", code="invalid_json")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise bad(f"The JSON has the key {twice[:64]!r} twice in one object.", code="invalid_json")
    return found


class StrictRequest(Request):
    """A request whose body has a limit (app.state.max_body, bytes) and whose JSON goes through `parse`."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            limit = int(self.app.state.max_body)
            try:
                with lanes.until_refused():
                    self._body = await asyncio.wait_for(self._read(limit), _BODY_S + limit / _BODY_RATE)
            except asyncio.TimeoutError:
                message = "The body did not come in time."
                raise ApiError(408, message, type="timeout_error", code="slow_body") from None
        return self._body

    async def _read(self, limit: int) -> bytes:
        too_large = ApiError(
            413, f"The body is larger than the limit of {limit} bytes.", code="body_too_large"
        )
        length = self.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length[:20]) > _DRAINED * limit:
            raise too_large
        chunks, size = [], 0
        async for chunk in self.stream():
            size += len(chunk)
            if size > _DRAINED * limit:
                raise too_large
            if size <= limit:
                chunks.append(chunk)
            else:
                chunks.clear()
        if size > limit:
            raise too_large
        return b"".join(chunks)

    async def json(self) -> Any:
        """The JSON, or, for a large body, the model of its route."""
        data = await self.body()
        lanes.received(len(data), self.receive)
        large = len(data) > _IN_THREAD
        self.scope[fields.SENT] = sent = await lanes.run(parse, data) if large else parse(data)
        kind = self.scope.get(_KIND)
        return sent if kind is None or not large else await lanes.run(_checked, kind, sent)


def _checked(kind: type[BaseModel], sent: Any) -> BaseModel:
    """Raises ApiError. No other Python thread runs while pydantic checks a body. So only one is checked at a time,
    and afterwards other work gets as much time as it took."""
    with _CHECKING:
        lanes.check()
        began = time.perf_counter()
        try:
            with converting():
                return kind.model_validate(sent)
        finally:
            time.sleep(min(_LONGEST_REST_S, time.perf_counter() - began))


class StrictRoute(APIRoute):
    """A route that reads its body as StrictRequest does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        kind = None if self.body_field is None else self.body_field.field_info.annotation
        is_model = isinstance(kind, type) and issubclass(kind, BaseModel)

        async def strict(request: Request) -> Response:
            request.scope[_KIND] = kind if is_model else None
            answer = await handle(StrictRequest(request.scope, request.receive))
            if names := fields.header(request):
                answer.headers[fields.HEADER] = names
            return answer

        return strict
