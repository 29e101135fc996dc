"""Fields of requests as the engine's sampling."""

from __future__ import annotations

import httpx
import pytest
from asking import BODIES, ok


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_minus_one_is_no_limit(client: httpx.Client, path: str) -> None:
    name = "max_output_tokens" if path.endswith("responses") else "max_tokens"
    ok(client.post(path, json=BODIES[path] | {name: -1, "temperature": 0}))
    assert client.post(path, json=BODIES[path] | {name: -2}).status_code == 400


EXTREMES: list[dict[str, float]] = [
    {"temperature": 1e-40},
    {"temperature": 100},
    {"temperature": 1e-40, "repeat_penalty": 100},
    {"top_p": 0},
    {"top_p": 1e-40},
    {"min_p": 1},
    {"typical_p": 0},
    {"typical_p": 1e-40},
    {"top_k": 0},
    {"top_k": -1},
    {"top_k": 2**31 - 1},
    {"repeat_penalty": 1e-3},
    {"presence_penalty": -2, "frequency_penalty": -2},
    {"seed": -(2**63)},
    {"seed": 2**63 - 1},
]


@pytest.mark.parametrize("values", EXTREMES, ids=str)
def test_extreme_values_still_choose(client: httpx.Client, values: dict[str, float]) -> None:
    found = ok(
        client.post("/completion", json={"prompt": "Hello", "n_predict": 4, "temperature": 1} | values)
    )
    assert 0 < found["tokens_predicted"] <= 4


def test_almost_no_temperature_is_none(client: httpx.Client) -> None:
    cold, none = (
        ok(client.post("/completion", json={"prompt": "Hello", "n_predict": 8, "temperature": value}))
        for value in (1e-40, 0)
    )
    assert cold["tokens"] == none["tokens"]


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "typical_p", "repeat_penalty"])
def test_values_out_of_range_are_named(client: httpx.Client, name: str) -> None:
    for value in (-1, 1e30, *([0, 1e-30] if name == "repeat_penalty" else [])):
        answer = client.post("/completion", json=BODIES["/completion"] | {name: value})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == name


@pytest.mark.parametrize("path", ["/completion", "/v1/completions", "/v1/chat/completions"])
def test_writing_ends_after_its_time(client: httpx.Client, path: str) -> None:
    def written(limit_ms: int, rules: str) -> tuple[str, str]:
        body = {key: value for key, value in BODIES[path].items() if key not in ("max_tokens", "n_predict")}
        body |= {"max_tokens": 900, "grammar": rules, "t_max_predict_ms": limit_ms}
        found = ok(client.post(path, json=body))
        if path == "/completion":
            return found["content"], found["stop_type"]
        (choice,) = found["choices"]
        return choice.get("text") or choice["message"]["content"], choice["finish_reason"]

    text, reason = written(20, 'root ::= "a\\n" "bc"{400}')
    assert text.startswith("a\n") and len(text) < 700 and reason in ("limit", "length")
    for limit_ms, rules in ((1, '"bc"{50}'), (0, '"a\\n" "bc"{50}'), (-1, '"a\\n" "bc"{50}')):
        text, reason = written(limit_ms, f"root ::= {rules}")  # no line break, or no limit
        assert text.count("bc") == 50 and reason in ("eos", "stop")
    refused = client.post(path, json=BODIES[path] | {"t_max_predict_ms": -2})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "t_max_predict_ms"
