"""Errors as clients read them: OpenAI's error object, wrapped in Anthropic's for that API."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from pyllama_long.errors import (
    Cancelled,
    ContextOverflow,
    DecodeError,
    EngineClosed,
    EngineFailed,
    GrammarError,
    NotNumbers,
    QueueFull,
)

log = logging.getLogger("pyllama_long.server")

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    503: "unavailable_error",
}


class ApiError(HTTPException):
    """An answer with an error object. extra: fields besides message, type, param and code."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        **extra: Any,
    ) -> None:
        headers = {} if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
        super().__init__(status, message, headers)
        kind = type or _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.error = {"message": message, "type": kind, "param": param, "code": code, **extra}


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """An error for a request that can never succeed as it is."""
    return ApiError(400, message, param=param, code=code)


def overflow(n_tokens: int, n_ctx: int, param: str = "messages", least: bool = False) -> ApiError:
    """The overflow error, in the words by which clients recognize it. least: there may be more tokens."""
    more = " These are the fewest that so long a text can be." if least else ""
    return ApiError(
        400,
        f"This model's maximum context length is {n_ctx} tokens. However, your messages resulted in {n_tokens} "
        f"tokens: request ({n_tokens} tokens) exceeds the available context size ({n_ctx} tokens).{more}",
        type="exceed_context_size_error",
        param=param,
        code="context_length_exceeded",
        n_prompt_tokens=n_tokens,
        n_ctx=n_ctx,
    )


def failed() -> ApiError:
    """An error for when the engine has failed."""
    return ApiError(503, "The engine has failed; the server's log says why.", code="failed")


def from_engine(error: BaseException, param: str = "messages") -> ApiError:
    """Turns an error of the engine into an answer. Messages of unexpected errors are only logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextOverflow):
        return overflow(error.n_tokens, error.n_ctx, param)
    if isinstance(error, QueueFull):
        wait = error.retry_after_s
        return ApiError(503, "The queue is full: try again later.", code="queue_full", retry_after=wait)
    if isinstance(error, EngineFailed):
        return failed()
    if isinstance(error, EngineClosed):
        return ApiError(503, "The server is shutting down.", code="shutting_down", retry_after=5)
    if isinstance(error, Cancelled):
        return ApiError(503, "The request was cancelled: the server is shutting down.", code="cancelled")
    if isinstance(error, ValueError):
        return bad(str(error))
    if isinstance(error, GrammarError):
        return bad(f"The answer was ended: {error}.", "grammar", "grammar_too_complex")
    if isinstance(error, NotNumbers):
        return ApiError(500, f"The model could not be evaluated: {error}.", code="not_numbers")
    if isinstance(error, DecodeError):
        return ApiError(500, "The model could not be evaluated.", code="decode_error")
    log.error("unforeseen error", exc_info=error)
    return ApiError(500, "Something went wrong in the server; its log says what.", code="internal_error")


def validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first of pydantic's errors about the request, in one line."""
    if not errors:
        return bad("The request is not valid.")
    errors = _of_their_type(errors)
    # The branch of a union that got furthest is most likely the intended one.
    first = max(errors, key=lambda e: (len(_path(e["loc"])), e.get("type") != "missing", not _of_type(e)))
    path = _path(first["loc"])
    param = ".".join(path) or None
    text = str(first.get("msg", "not valid")).removeprefix("Value error, ")
    if _of_type(first):  # every branch expects another type
        wanted = (_wanted(e) for e in errors if _of_type(e) and _path(e["loc"]) == path)
        text = f"Input should be {' or '.join(dict.fromkeys(wanted))}"
    if first.get("type") == "json_invalid":
        return bad("The body is not valid JSON.", code="invalid_json")
    if param is None and first["loc"][:1] == ("body",):
        return bad("The body must be a JSON object, sent with Content-Type: application/json.")
    return bad(f"{param}: {text}" if param else text, param, "invalid_value")


def _of_type(error: Mapping[str, Any]) -> bool:
    kind = str(error.get("type"))
    return kind.endswith("_type") or kind == "literal_error"


def _wanted(error: Mapping[str, Any]) -> str:
    if error["type"] in ("dict_type", "model_type", "model_attributes_type"):
        return "an object"
    return str(error["msg"]).removeprefix("Input should be ")


def _of_their_type(errors: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Drops the branches of unions for another `type` than the request names, if others are left."""
    other = [
        tuple(e["loc"][:-1]) for e in errors if e.get("type") == "literal_error" and _tags_branch(e["loc"])
    ]
    left = [e for e in errors if not any(tuple(e["loc"][: len(branch)]) == branch for branch in other)]
    deepest = max((len(_path(branch)) for branch in other), default=0)
    return left if any(len(_path(e["loc"])) > deepest for e in left) else errors


def _tags_branch(loc: Sequence[Any]) -> bool:
    return len(loc) > 2 and loc[-1] == "type" and not _path(("", loc[-2]))


@contextmanager
def converting() -> Iterator[None]:
    """For converting a request to another shape: pydantic's errors become the same as for a body."""
    try:
        yield
    except ValidationError as error:
        raise validation([{**one, "loc": ("body", *one["loc"])} for one in error.errors()]) from None


def _path(loc: Sequence[Any]) -> list[str]:
    """Field names and indices, without pydantic's names of types, which contain capitals, brackets or hyphens."""
    path = [str(part) for part in loc[1:]]
    kinds = {"str", "int", "float", "bool", "dict", "list"}
    return [
        part for part in path if part not in kinds and part == part.lower() and not set(part) & set("[]()-,")
    ]


def reply(error: ApiError, path: str, request_id: str | None) -> JSONResponse:
    body: dict[str, Any] = {"error": error.error}
    if path.startswith("/v1/messages"):
        body = {"type": "error", "error": error.error, "request_id": request_id}
    return JSONResponse(body, error.status_code, dict(error.headers or {}))


def install(app: FastAPI) -> None:
    """Turns every error of the app into one of ours."""

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if not isinstance(error, ApiError):
            headers = error.headers or {}
            known = {
                404: f"There is no {request.url.path}.",
                405: f"{request.method} does not work here: use {headers.get('Allow', 'another method')}.",
            }
            error = ApiError(error.status_code, known.get(error.status_code, str(error.detail)))
            error.headers = headers
        return reply(error, request.url.path, request.scope.get("request_id"))

    async def on_validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return reply(validation(error.errors()), request.url.path, request.scope.get("request_id"))

    async def on_engine(request: Request, error: Exception) -> JSONResponse:
        return reply(from_engine(error), request.url.path, request.scope.get("request_id"))

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(Exception, on_engine)
