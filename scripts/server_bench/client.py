"""A streamed completion from llama-server or from us, with the times of its tokens."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

SILENT: list[
    int
] = []  # control tokens of the model, set by the bench: they have no text, so there would be no event to time


@dataclass
class Answer:
    """times: when each event with tokens arrived, in seconds of time.monotonic."""

    sent: float
    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @property
    def first_s(self) -> float:
        return self.times[0] - self.sent


def complete(
    client: httpx.Client,
    prompt: list[int],
    n: int,
    slot: int = -1,
    stop: threading.Event | None = None,
    into: Answer | None = None,
) -> Answer:
    """Requests n greedy tokens, none of which ends the text. stop: disconnects when it is set; into: filled as tokens
    arrive."""
    answer = into or Answer(0.0)
    body: dict[str, Any] = {"prompt": prompt, "n_predict": n, "temperature": 0, "ignore_eos": True}
    body |= {"stream": True, "cache_prompt": True, "id_slot": slot, "return_tokens": True}
    body["logit_bias"] = [[token, False] for token in SILENT]
    answer.sent = time.monotonic()
    with client.stream("POST", "/completion", json=body) as reply:
        if reply.status_code != 200:
            raise RuntimeError(reply.read().decode(errors="replace")[:300])
        for line in reply.iter_lines():
            if stop is not None and stop.is_set():
                break
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            if tokens := event.get("tokens") if not event.get("stop") else None:
                answer.times.append(time.monotonic())
                answer.tokens += tokens
            if event.get("stop"):
                answer.times = answer.times or [time.monotonic()]
    return answer
