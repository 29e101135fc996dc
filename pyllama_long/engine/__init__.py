"""Many requests on one model: continuous batching, prompts read while streams are running, prefixes reused.

engine.py is the face; loop.py the thread behind it, step.py one batch of it.
"""

from pyllama_long.engine.config import EngineConfig, Request, Sampling
from pyllama_long.engine.engine import Engine
from pyllama_long.engine.events import (
    Event,
    Finished,
    Progress,
    PromptScores,
    Queued,
    Started,
    Text,
    TokenInfo,
    Usage,
)
from pyllama_long.engine.handle import Handle
from pyllama_long.engine.sessions import SessionInfo
from pyllama_long.engine.stats import EngineStats
from pyllama_long.errors import Cancelled, ContextOverflow, DecodeError, EngineClosed, ModelError, QueueFull

__all__ = [
    "Cancelled",
    "ContextOverflow",
    "DecodeError",
    "Engine",
    "EngineClosed",
    "EngineConfig",
    "EngineStats",
    "Event",
    "Finished",
    "Handle",
    "ModelError",
    "Progress",
    "PromptScores",
    "QueueFull",
    "Queued",
    "Request",
    "Sampling",
    "SessionInfo",
    "Started",
    "Text",
    "TokenInfo",
    "Usage",
]
