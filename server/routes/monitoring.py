"""/health and /metrics, for monitoring."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from .. import lanes
from ..body import StrictRoute
from ..schemas.monitoring import Health
from ..state import state_of

router = APIRouter(route_class=StrictRoute)
_STUCK_S = 30.0  # seconds without a step of the engine; one step on a slow machine takes seconds


@router.head("/v1/health", include_in_schema=False)
@router.head("/health", include_in_schema=False)
@router.get("/v1/health", include_in_schema=False)
@router.get("/health", response_model=Health, tags=["state"], responses={503: {"model": Health}})
async def health(http: Request) -> Response:
    state = state_of(http)
    status: Literal["ok", "loading", "failed", "draining", "stuck"] = state.status
    if status == "ok" and state.engine_failed:
        status = "failed"
    elif status == "ok" and state.stuck_s() > _STUCK_S:
        status = "stuck"
    found = Health(status=status, progress=state.progress)
    headers = {} if status == "ok" else {"Retry-After": "2"}
    return JSONResponse(found.model_dump(), 200 if status == "ok" else 503, headers)


@router.get("/metrics", tags=["state"], response_class=Response)
async def prometheus(http: Request) -> Response:
    """Metrics in Prometheus's text format."""
    text = await lanes.run(state_of(http).metrics.text)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
