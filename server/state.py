"""Shared by the routes: the engine once it is loaded, and what is derived from its model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fastapi import Request

from pyllama_long.plan import AttentionPlan
from pyllama_long.plan_error import PlanError
from pyllama_long.rope import RopeError, RopePolicy

from . import call_formats, calls, channels, errors, lanes, logs, vocabulary
from .errors import ApiError, bad
from .metrics import Metrics
from .overflow_store import Store
from .response_store import ResponseStore
from .security import Keys
from .settings import Settings
from .template import ChatTemplate
from .token_prefixes import TokenPrefixes

if TYPE_CHECKING:
    from pyllama_long.engine import Engine

    from .schemas.common import Sampled

_LOADING_S = 5.0
# seconds to wait for a text that is still being tokenized for nobody; after that the process ends anyway
_USERS_S = 1.0

Loader = Callable[[Callable[[int, int], None]], "Engine"]


@dataclass
class Loaded:
    """An engine and what the server reads from its model once. template: None, with the reason, if the GGUF has none
    that can be used. controls: ids of control tokens by name. least: None if texts of any length may be few
    tokens."""

    engine: Engine
    template: ChatTemplate | None
    template_error: str
    form: calls.Format
    fim: vocabulary.FillMarks | None
    token_prefixes: TokenPrefixes
    controls: dict[str, int]
    least: vocabulary.Least | None
    created: int = field(default_factory=lambda: int(time.time()))

    @staticmethod
    def of(engine: Engine) -> Loaded:
        source, template, reason = engine.chat_template, None, "this model's file has no chat template"
        if source is not None:
            try:
                names = [*vocabulary.controls(engine), *channels.names(source)]
                template = ChatTemplate(source, *vocabulary.ends(engine), names)
            except ValueError as error:
                reason = str(error)
        token_prefixes = TokenPrefixes(engine.tokenize, vocabulary.boundaries(engine))
        form = call_formats.format_of(source if template is not None and template.knows_tools else None)
        controls = vocabulary.controls(engine)
        return Loaded(
            engine,
            template,
            reason,
            form,
            vocabulary.fill_marks(engine),
            token_prefixes,
            controls,
            vocabulary.Least.of(engine),
        )

    def chat_template(self) -> ChatTemplate:
        if self.template is None:
            raise bad(f"No chat with this model: {self.template_error}.", "model", "no_chat_template")
        return self.template

    def check_length(self, texts: Sequence[str], param: str = "messages") -> None:
        """Raises ApiError if texts cannot fit, before they are tokenized."""
        if self.least is not None:
            n = sum(self.least.tokens(text) for text in texts)
            if n > self.engine.n_ctx:
                raise errors.overflow(n, self.engine.n_ctx, param, least=True)

    def check_extras(self, request: Sampled) -> None:
        """Raises ApiError if a request wants another plan or policy than the server's."""
        engine = self.engine
        for name, wanted, running in (
            ("attention", request.attention, engine.plan),
            ("rope", request.rope, engine.rope),
        ):
            if wanted is None or wanted in ("auto", str(running)):
                continue
            parse: Any = AttentionPlan.parse if name == "attention" else RopePolicy.parse
            try:
                same = str(parse(wanted)) == str(running)
            except (PlanError, RopeError) as error:
                raise bad(f"{name}: {error}", name) from None
            if not same:
                message = (
                    f"This server runs {name}={str(running)!r}; start another with --{name} for {wanted!r}."
                )
                raise bad(message, name, "unsupported_value")


class State:
    """The state of one app. `load` runs in a thread of its own."""

    def __init__(self, settings: Settings, loader: Loader) -> None:
        self.settings, self.keys, self.metrics = settings, Keys(settings.api_keys), Metrics()
        self.store = Store(settings.store, settings.store_bytes)
        self.responses = ResponseStore(settings.keep_responses)
        self.lanes = lanes.Lanes(settings.request_timeout_s)
        self.status: Literal["loading", "ok", "failed", "draining"] = "loading"
        self.progress: float | None = None
        self.error: BaseException | None = None
        self.on_loaded: Callable[[], None] = lambda: None
        self._loader, self._loaded = loader, None
        self._thread: threading.Thread | None = None

    _loaded: Loaded | None

    def load(self) -> None:
        self._thread = threading.Thread(target=self._load, name="load", daemon=True)
        self._thread.start()

    def _load(self) -> None:
        def progress(done: int, total: int) -> None:
            self.progress = done / total if total else None

        started = time.monotonic()
        try:
            engine = self._loader(progress)
            with engine.using():
                loaded = Loaded.of(engine)
        except BaseException as error:
            self.status, self.error = "failed", error
        else:
            self._loaded = loaded
            self.metrics.watch(loaded.engine)
            if self.status == "loading":
                self.status, self.progress = "ok", 1.0
            logs.event("loaded", model=self.settings.model_name, seconds=round(time.monotonic() - started, 3))
        self.on_loaded()

    @property
    def loaded(self) -> Loaded:
        """Raises ApiError (503) before the model is loaded, and while the server shuts down."""
        if self.status == "draining":
            raise ApiError(503, "The server is shutting down.", code="shutting_down", retry_after=5)
        if self._loaded is None:
            if self.status == "failed":
                raise ApiError(
                    503, "The model could not be loaded; the server's log says why.", code="failed"
                )
            raise ApiError(503, "The model is being loaded.", code="loading", retry_after=2)
        if self.engine_failed:
            raise errors.failed()
        return self._loaded

    def stop(self) -> None:
        """Ends what still runs: streams get an error event, other requests a 503. For any thread."""
        self.status = "draining"
        self.lanes.stop()
        if self._loaded is not None:
            self._loaded.engine.close(0.0, _USERS_S)

    @property
    def engine_failed(self) -> bool:
        """Whether the engine has ended by itself."""
        return self._loaded is not None and self._loaded.engine.failure is not None

    def stuck_s(self) -> float:
        """Seconds since the engine's thread last began a step although something waits for it."""
        engine = None if self._loaded is None else self._loaded.engine
        return 0.0 if engine is None or not engine.has_work else max(0.0, time.monotonic() - engine.last_step)

    @property
    def is_loading(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def close(self, drain_s: float = 0.0) -> None:
        self.status = "draining"
        if self._thread is not None:
            self._thread.join(_LOADING_S)  # a model that is still being loaded ends with the process
        if self._loaded is not None:
            self._loaded.engine.close(drain_s, _USERS_S)
        self.lanes.stop()
        self.store.close()


@dataclass(frozen=True)
class RequestContext:
    """What the work for one request needs. salt: of its key, which has its own cached prefixes and old turns.
    started: by time.monotonic, from which the server's time limit counts."""

    state: State
    loaded: Loaded
    salt: str
    started: float = field(default_factory=time.monotonic)

    @staticmethod
    def of(http: Request, loaded: Loaded) -> RequestContext:
        return RequestContext(state_of(http), loaded, salt_of(http))

    def spent_s(self) -> float:
        return time.monotonic() - self.started


def state_of(request: Request) -> State:
    state: State = request.app.state.state
    return state


def salt_of(request: Request) -> str:
    salt: str = request.scope["salt"]
    return salt
