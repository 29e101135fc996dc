"""The page at /, and its script and style."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

router = APIRouter(include_in_schema=False)
_WEB = Path(__file__).resolve().parent.parent / "web"
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:"


def _file(name: str, kind: str) -> FileResponse:
    headers = {
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    return FileResponse(_WEB / name, media_type=kind, headers=headers)


@router.head("/")
@router.get("/")
async def index() -> Response:
    return _file("index.html", "text/html")


@router.get("/web/app.js")
async def script() -> Response:
    return _file("app.js", "text/javascript")


@router.get("/web/style.css")
async def style() -> Response:
    return _file("style.css", "text/css")
