"""Shared by the schemas of several routes."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema

MAX_N = 16
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_CHARS = 512
MAX_BIAS = 1024
MAX_TOOLS = 128
MAX_INPUTS = 512
MAX_TOKENS = 2**31 - 1

Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = Annotated[list[Stop], Field(max_length=MAX_STOPS)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


def _unlimited(value: Any) -> Any:
    return None if type(value) is int and value == -1 else value


TokenLimit = Annotated[
    Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None, BeforeValidator(_unlimited)
]  # -1: no limit
TokenLimitOrNone = Annotated[Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None, BeforeValidator(_unlimited)]
Tokens = Annotated[list[Token], Field(min_length=1)]
Prompts = Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]
Mixed = Annotated[list[str | Token], Field(min_length=1)]
MixedPrompts = Annotated[list[str | Mixed], Field(min_length=1, max_length=MAX_INPUTS)]
TokenPrompts = Annotated[list[Tokens], Field(min_length=1, max_length=MAX_INPUTS)]
OverflowMode = Literal["error", "shift", "summarize", "retrieve"]


def few(n: int) -> BeforeValidator:
    """Limits an object's fields before any is checked, and thereby the number of errors."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > n:
            raise ValueError(f"should have at most {n} fields, not {len(value)}")
        return value

    return BeforeValidator(check)


def _fail_fast(schema: Any) -> None:
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for part in schema.values():
            _fail_fast(part)
    elif isinstance(schema, (list, tuple)):
        for part in schema:
            _fail_fast(part)


class Body(BaseModel):
    """A request or a part of one: types are not converted. harmless: fields that clients usually send and that change
    nothing here, so they are not reported as ignored. is_read: false if the whole object is left out, which is
    reported elsewhere."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())
    harmless: ClassVar[frozenset[str]] = frozenset()

    @property
    def is_read(self) -> bool:
        return True

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Lists are only checked up to their first wrong item: errors about millions would take a minute to write."""
        found = handler(source)
        _fail_fast(found)
        return found


class Open(Body):
    """A request whose unknown fields are kept, so that they can be named."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


class Reply(BaseModel):
    """A response or a part of one."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Sampled(Open):
    """Fields of every route that writes text; None: the server's default."""

    model: str | None = Field(None, max_length=1024)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MAX_TOKENS)
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, ge=1e-3, le=100)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repeat_last_n: int | None = Field(None, ge=-1, le=1 << 20, description="-1: the trained length.")
    min_keep: int | None = Field(None, ge=0, le=1 << 20)
    top_n_sigma: float | None = Field(None, ge=-1, le=1e6)
    xtc_probability: float | None = Field(None, ge=0, le=1)
    xtc_threshold: float | None = Field(None, ge=0, le=1)
    dynatemp_range: float | None = Field(None, ge=0, le=100)
    dynatemp_exponent: float | None = Field(None, ge=0, le=100)
    dry_multiplier: float | None = Field(None, ge=0, le=100)
    dry_base: float | None = Field(None, ge=0, le=100)
    dry_allowed_length: int | None = Field(None, ge=0, le=1 << 20)
    dry_penalty_last_n: int | None = Field(None, ge=-1, le=1 << 20)
    dry_sequence_breakers: list[str] | None = Field(None, max_length=64)
    mirostat: int | None = Field(None, ge=0, le=2)
    mirostat_tau: float | None = Field(None, ge=0, le=1000)
    mirostat_eta: float | None = Field(None, ge=0, le=1)
    samplers: list[str] | str | None = Field(
        None, max_length=64, description="Their order, by llama-server's names or letters; others do not run."
    )
    t_max_predict_ms: int | None = Field(
        None, ge=-1, le=MAX_TOKENS, description="Time for writing; it ends an answer that has a line break."
    )
    seed: Seed | None = None
    stream: bool | None = None
    attention: str | None = Field(
        None, max_length=1024, description="Refused unless it is the plan that the server runs."
    )
    rope: str | None = Field(
        None, max_length=1024, description="Refused unless it is the RoPE policy that the server runs."
    )
    return_progress: bool | None = Field(
        None, description="With stream: chunks with `prompt_progress` while the prompt is read."
    )
    priority: int | None = Field(None, ge=-100, le=0, description="Below 0: after the requests of others.")


class Overflowing(Sampled):
    """Routes that take a conversation."""

    overflow: OverflowMode | None = Field(
        None, description="What to do with a conversation that does not fit; default: the server's choice."
    )


class StreamOptions(Body):
    include_usage: bool | None = None


class ErrorInfo(Reply):
    model_config = ConfigDict(extra="allow")

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Reply):
    error: ErrorInfo


class AnthropicErrorReply(Reply):
    """Anthropic's shape, with OpenAI's fields in it."""

    type: Literal["error"] = "error"
    error: ErrorInfo
    request_id: str | None = None


class PromptDetails(Reply):
    cached_tokens: int


class CompletionDetails(Reply):
    reasoning_tokens: int = 0


class Usage(Reply):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails = CompletionDetails()


class Timings(Reply):
    """Statistics, named as in llama-server. keys_read_share: keys that attention read, as a share of those that exact
    attention would have read. attention_error: its relative error, as measured for all requests so far; absent if
    the plan checks no queries."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float | None
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float | None
    keys_read_share: float | None
    attention_error: float | None = None


class OverflowReport(Reply):
    """How a conversation that did not fit was shortened. Messages are counted as the client sent them."""

    mode: Literal["shift", "summarize", "retrieve"]
    dropped_messages: int
    dropped_tokens: int
    summary: str | None = None
    retrieved_messages: int | None = None


class PromptProgress(Reply):
    total: int
    cache: int
    processed: int
    time_ms: float


JsonObject = dict[str, Any]
