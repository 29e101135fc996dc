"""From the fields of a request to the engine's sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyllama_long.engine import Engine, Sampling
from pyllama_long.grammar import Lark
from pyllama_long.server.errors import bad
from pyllama_long.server.schemas.common import Sampled
from pyllama_long.server.settings import Settings

_NAMES = "top_k top_p min_p typical_p repeat_penalty presence_penalty frequency_penalty".split()


def sampling(
    engine: Engine,
    settings: Settings,
    request: Sampled,
    seed: int | None,
    logit_bias: Mapping[str, float] | None,
    grammar: str | Lark | None,
) -> Sampling:
    """What was asked for, and defaults for the rest."""
    given = {name: getattr(request, name) for name in _NAMES if getattr(request, name) is not None}
    temperature = settings.temperature if request.temperature is None else request.temperature
    return Sampling(
        temperature=temperature,
        seed=seed,
        logit_bias=_bias(engine, logit_bias or {}),
        grammar=grammar,
        **given,
    )


def _bias(engine: Engine, given: Mapping[str, float]) -> dict[int, float]:
    found = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < engine.n_vocab):
            message = f"logit_bias: {key[:32]!r} is not one of the {engine.n_vocab} tokens of this model."
            raise bad(message, "logit_bias")
        found[int(key)] = float(value)
    return found


def stops(given: str | Sequence[str] | None) -> tuple[str, ...]:
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(given)
