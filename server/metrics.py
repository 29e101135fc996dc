"""Prometheus metrics."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pyllama_long.layers import Reasons, by_reason, spans

if TYPE_CHECKING:
    from pyllama_long.engine import Engine
    from pyllama_long.engine.events import Usage

_PREFIX = "pyllama_long"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """The metrics of one app, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"{_PREFIX}_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(f"{_PREFIX}_{name}", text, labels, registry=self.registry, buckets=_SECONDS)

        self._http = counter("http_requests", "HTTP requests", ("route", "method", "status"))
        self._duration = histogram("http_request_duration_seconds", "Until the last byte", ("route",))
        self._first = histogram("time_to_first_token_seconds", "From submitting to the first text")
        self._prompt = counter("prompt_tokens", "Tokens of prompts, cached ones included")
        self._cached = counter("prompt_tokens_cached", "Tokens of prompts that were in the cache")
        self._written = counter("completion_tokens", "Tokens written")
        self._prefill = counter("prefill_seconds", "Seconds of reading prompts")
        self._decode = counter("decode_seconds", "Seconds of writing")
        self._active = Gauge(f"{_PREFIX}_requests_active", "Choices being worked on", registry=self.registry)

    def watch(self, engine: Engine) -> None:
        """Adds the engine's own statistics."""
        self.registry.register(_EngineStats(engine))

    def http(self, route: str, method: str, status: int, seconds: float) -> None:
        known = method if method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH") else "other"
        self._http.labels(route, known, str(status)).inc()
        self._duration.labels(route).observe(seconds)

    def submitted(self, n: int) -> None:
        self._active.inc(n)

    def finished(self, n: int) -> None:
        self._active.dec(n)

    def first_token(self, seconds: float) -> None:
        self._first.observe(seconds)

    def used(self, usage: Usage) -> None:
        self._prompt.inc(usage.n_prompt)
        self._cached.inc(usage.n_cached)
        self._written.inc(usage.n_completion)
        self._prefill.inc(max(0.0, usage.prefill_s))
        self._decode.inc(max(0.0, usage.decode_s))

    def text(self) -> bytes:
        found: bytes = generate_latest(self.registry)
        return found


class _EngineStats(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine, self._lock = engine, threading.Lock()

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            found = numbers(self._engine.stats())
        for name, value in found.items():
            yield GaugeMetricFamily(f"{_PREFIX}_engine_{name}", f"The engine's {name}", value)
        yield _layers(self._engine.layers)


def _layers(found: Reasons) -> GaugeMetricFamily:
    """How many layers with attention there are, which, and why the op does not compute them, or ""."""
    labels = ("layers", "refused")
    gauge = GaugeMetricFamily(f"{_PREFIX}_attention_layers", "Layers with attention", labels=labels)
    taken = [layer for layer, reason in found if not reason]
    for reason, group in [("", taken), *by_reason(found).items()]:
        if group:
            gauge.add_metric([spans(group), reason], len(group))
    return gauge


def numbers(stats: Any) -> dict[str, float]:
    """The fields of an engine's statistics that are numbers."""
    named = (
        {field.name: getattr(stats, field.name) for field in fields(stats)}
        if is_dataclass(stats)
        else vars(stats)
    )
    return {name: value for name, value in named.items() if isinstance(value, (int, float))}
