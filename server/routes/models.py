"""/v1/models: the one model of this server."""

from __future__ import annotations

from fastapi import APIRouter, Request

from ..body import StrictRoute
from ..errors import ApiError
from ..schemas.models import ModelInfo, ModelList
from ..state import Loaded, state_of

router = APIRouter(route_class=StrictRoute)


@router.get("/models", include_in_schema=False)
@router.get("/v1/models", response_model=ModelList, tags=["OpenAI"])
async def models(http: Request) -> ModelList:
    state = state_of(http)
    return ModelList(data=[_model(state.settings.model_name, state.loaded)])


@router.get("/models/{model:path}", include_in_schema=False)
@router.get("/v1/models/{model:path}", response_model=ModelInfo, tags=["OpenAI"])
async def model(model: str, http: Request) -> ModelInfo:
    state = state_of(http)
    if model != state.settings.model_name:
        raise ApiError(404, f"There is no model {model[:64]!r} here.", param="model", code="model_not_found")
    return _model(state.settings.model_name, state.loaded)


def _model(name: str, loaded: Loaded) -> ModelInfo:
    engine = loaded.engine
    meta = {"n_ctx": engine.n_ctx, "n_ctx_train": engine.n_train, "n_vocab": engine.n_vocab}
    return ModelInfo(id=name, created=loaded.created, meta=meta)
