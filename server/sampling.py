"""Turns the fields of a request into the engine's sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyllama_long.engine import Engine, Sampling
from pyllama_long.engine.config import SAMPLERS
from pyllama_long.grammar import Lark

from .errors import bad
from .schemas.common import Sampled
from .settings import Settings

_NAMES = (
    "top_k top_p min_p typical_p repeat_penalty presence_penalty frequency_penalty repeat_last_n min_keep top_n_sigma "
    "xtc_probability xtc_threshold dynatemp_range dynatemp_exponent dry_multiplier dry_base dry_allowed_length "
    "dry_penalty_last_n dry_sequence_breakers mirostat mirostat_tau mirostat_eta"
).split()
_LETTERS = dict(zip("edskypmxt", SAMPLERS, strict=True))
_OTHER_NAMES = {
    "typical_p": "typ_p",
    "typical": "typ_p",
    "temp": "temperature",
    "top-k": "top_k",
    "top-p": "top_p",
}


def sampling(
    engine: Engine,
    settings: Settings,
    request: Sampled,
    seed: int | None,
    logit_bias: Mapping[str, float] | None,
    grammar: str | Lark | None,
) -> Sampling:
    """The requested sampling, with defaults for the rest."""
    given = {name: getattr(request, name) for name in _NAMES if getattr(request, name) is not None}
    if request.samplers is not None:
        given["samplers"] = _order(request.samplers)
    temperature = settings.temperature if request.temperature is None else request.temperature
    return Sampling(
        temperature=temperature,
        seed=seed,
        logit_bias=_bias(engine, logit_bias or {}),
        grammar=grammar,
        **given,
    )


def _order(wanted: str | Sequence[str]) -> list[str]:
    """Samplers by name, from names or from a text of letters. Raises ApiError."""
    names = [_LETTERS.get(c, c) for c in wanted] if isinstance(wanted, str) else list(wanted)
    names = [_OTHER_NAMES.get(name, name) for name in names]
    for name in names:
        if name not in SAMPLERS:
            raise bad(f"samplers: {name[:32]!r} is none of {', '.join(SAMPLERS)}.", "samplers")
    return list(dict.fromkeys(names))


def _bias(engine: Engine, given: Mapping[str, float]) -> dict[int, float]:
    found = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < engine.n_vocab):
            message = f"logit_bias: {key[:32]!r} is not one of the {engine.n_vocab} tokens of this model."
            raise bad(message, "logit_bias")
        found[int(key)] = float(value)
    return found


def write_s(request: Sampled) -> float | None:
    """Seconds that writing may take; None for no limit."""
    limit = request.t_max_predict_ms
    return limit / 1000 if limit is not None and limit > 0 else None


def stops(given: str | Sequence[str] | None) -> tuple[str, ...]:
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(given)


def seeds(seed: int | None, n: int) -> Sequence[int | None]:
    """A seed for each of n choices; -1 means none, as in llama.cpp."""
    if seed is None or seed == -1:
        return [None] * n
    return [(seed + i) % 2**32 for i in range(n)]
