"""schemathesis on the OpenAPI that the server publishes: no 5xx, no hang, every answer as described."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from running_server import Server, running
from schemathesis import GenerationMode, checks

from pyllama_long.engine import EngineConfig
from pyllama_long.server.app import create_app
from pyllama_long.server.settings import Settings

HANGS = 20.0  # seconds; an answer may fill the context, which takes less than one
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


def operations() -> list[tuple[str, str, Any]]:
    """Without a body there is nothing that a schema could forbid."""
    paths = create_app(Settings(), lambda _: pytest.fail("nothing is loaded")).openapi()["paths"]
    return [
        (path, method, mode)
        for path, methods in paths.items()
        for method, operation in methods.items()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        if mode is GenerationMode.POSITIVE or "requestBody" in operation
    ]


@pytest.fixture(scope="module")
def server(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = str(tmp_path_factory.mktemp("cache"))
    config = EngineConfig(demo_model, n_ctx=256, n_parallel=4, n_threads=1, embedding=True, cache_dir=folder)
    with running(config, Settings(model_name="demo", max_body=1 << 20)) as found:
        yield found
        found.quiet()
        stats = found.engine.stats()
        assert stats.cells_used == stats.cells_idle and stats.failed == 0


@pytest.mark.parametrize(("path", "method", "mode"), operations())
def test_whatever_a_client_sends(server: Server, path: str, method: str, mode: Any) -> None:
    """positive: what the schema allows; negative: what it forbids."""
    described = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operation: Any = described[path][method]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def send(case: Any) -> None:
        answer = case.call(timeout=HANGS)
        streamed = answer.headers.get("content-type", [""])[0].startswith("text/event-stream")
        # Events are checked against x-events, which schemathesis does not know, by the server's own wrapper.
        case.validate_response(answer, checks=CHECKS[:-1] if streamed else CHECKS)

    send()
    assert not server.faults, server.faults[0]
