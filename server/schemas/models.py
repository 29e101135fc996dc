"""/v1/models."""

from __future__ import annotations

from typing import Literal

from .common import Reply


class ModelInfo(Reply):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "pyllama-long"
    meta: dict[str, int]


class ModelList(Reply):
    object: Literal["list"] = "list"
    data: list[ModelInfo]
