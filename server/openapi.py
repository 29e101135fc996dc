"""The published OpenAPI, with our error object instead of FastAPI's, and the chunks of streams."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from pyllama_long import __version__

from .schemas.common import AnthropicErrorReply, ErrorReply

_STREAM = "text/event-stream"
_EVENTS = "x-events"
_STATUSES = {
    "400": "The request is wrong, or its prompt does not fit.",
    "401": "An API key is needed.",
    "413": "The body is too large.",
    "503": "Loading, shutting down, or the queue is full.",
}
_documented: dict[str, type[BaseModel]] = {}


def streamed(
    model: type[BaseModel], text: str, error: type[BaseModel] = ErrorReply
) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that can stream: the models of its events' data, and a description."""
    _documented[model.__name__] = model
    refs = [{"$ref": f"#/components/schemas/{one.__name__}"} for one in (model, error)]
    schema: dict[str, Any] = {
        "type": "string",
        "description": f"Server-sent events; the data of each is one of {_EVENTS}. {text}",
        _EVENTS: {"anyOf": refs},
    }
    return {200: {"description": "The answer", "content": {_STREAM: {"schema": schema}}}}


def install(app: FastAPI, with_keys: bool) -> None:
    """Replaces the app's own description, made once."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _describe(app, with_keys)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _describe(app: FastAPI, with_keys: bool) -> dict[str, Any]:
    found = get_openapi(
        title="pyllama-long",
        version=__version__,
        routes=app.routes,
        description="Long contexts for GGUF models, with OpenAI's, Anthropic's and llama.cpp's routes.",
    )
    schemas = found["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    own: list[type[BaseModel]] = [*_documented.values(), ErrorReply, AnthropicErrorReply]
    _, more = models_json_schema(
        [(model, "serialization") for model in own], ref_template="#/components/schemas/{model}"
    )
    for name, schema in more["$defs"].items():
        schemas.setdefault(name, schema)
    for path, methods in found["paths"].items():
        for operation in methods.values():
            _errors(operation, path)
            if with_keys and path != "/health":
                operation["security"] = [{"bearer": []}, {"x-api-key": []}]
    if with_keys:
        found["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
    return found


def _errors(operation: dict[str, Any], path: str) -> None:
    """Replaces FastAPI's 422 by our errors."""
    responses = operation["responses"]
    responses.pop("422", None)
    name = "AnthropicErrorReply" if path.startswith("/v1/messages") else "ErrorReply"
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    for status, text in _STATUSES.items():
        responses.setdefault(status, {"description": text, "content": content})
    responses["default"] = {"description": "Any other error.", "content": content}
