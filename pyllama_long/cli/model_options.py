"""The options for the model that a command opens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pyllama_long import lengths, memory
from pyllama_long.cli.checks import MAX_CTX
from pyllama_long.cli.command_error import CommandError, refused
from pyllama_long.cli.embedded import EMBEDDED, embedded_model
from pyllama_long.cli.hub import download
from pyllama_long.cli.options import (
    Attention,
    CheckpointEvery,
    CheckpointRam,
    Checkpoints,
    Ctx,
    Hub,
    KvType,
    Lora,
    LoraScale,
    Model,
    Precision,
    Rope,
    Threads,
)
from pyllama_long.gguf_file import GGUFError, GGUFFile, read_parts
from pyllama_long.model_info import ModelInfo, model_info

if TYPE_CHECKING:
    from pyllama_long.llama import LongLlama

DEFAULT_CTX = 32768  # for models that were trained at fewer
MIN_CTX = 512


@dataclass(frozen=True)
class ModelOptions:
    """Options for the model to open, and for its context."""

    model: Model = None
    hub: Hub = None
    attention: Attention = "auto"
    rope: Rope = "auto"
    ctx: Ctx = 0
    kv_type: KvType = "f16"
    precision: Precision = "auto"
    threads: Threads = 0
    checkpoints: Checkpoints = 64
    checkpoint_every: CheckpointEvery = 2048
    checkpoint_ram: CheckpointRam = 2.0

    def path(self) -> Path:
        """The model's file, downloaded if it comes from the hub and is not here yet."""
        return self._path

    @cached_property
    def _path(self) -> Path:
        if self.model is not None and self.hub is not None:
            raise typer.BadParameter("give -m FILE or --hf REPO[:FILE], not both")
        if self.model is not None:
            named = str(self.model) in EMBEDDED and not self.model.exists()
            return embedded_model(str(self.model)) if named else self.model
        return embedded_model() if self.hub is None else download(self.hub)

    @cached_property
    def file(self) -> GGUFFile:
        """The model's header, read once."""
        return read_parts(self.path())

    def info(self) -> ModelInfo:
        return model_info(self.file)

    def n_ctx(self, chosen: int) -> int:
        """The value of --ctx in tokens; without it, `chosen`."""
        try:
            return lengths.in_tokens(self.ctx, self.info().n_train, MAX_CTX) if self.ctx else chosen
        except lengths.LengthError as error:
            raise CommandError(f"--ctx: {error}") from None

    def open(self, n_ctx: int, progress: Callable[[int, int], None] | None = None) -> LongLlama:
        """Loads the model; n_ctx: used if --ctx is not given."""
        info = self.info()
        if not info.n_layer:
            raise GGUFError(f"{info.path} has no layers: it is not a language model's file")
        from pyllama_long.llama import LongLlama

        threads = {"n_threads": self.threads, "n_threads_batch": self.threads} if self.threads else {}
        with refused():
            return LongLlama(
                self.file,
                n_ctx=self.n_ctx(n_ctx),
                attention=self.attention,
                rope=self.rope,
                kv_type=self.kv_type,
                precision=self.precision,
                progress=progress,
                **threads,
                **self.kept(),
                **self.adapter(),
            )

    def kept(self) -> dict[str, int]:
        """Limits of checkpoints, as keyword arguments of LongLlama and EngineConfig."""
        return {
            "checkpoints": self.checkpoints,
            "checkpoint_every": self.checkpoint_every,
            "checkpoint_ram": int(self.checkpoint_ram * 2**30),
        }

    def adapter(self) -> dict[str, Any]:
        """Keyword arguments of LongLlama for an adapter."""
        return {}

    @contextmanager
    def vocabulary(self) -> Iterator[Callable[[str], list[int]]]:
        """The tokens of a text as a prompt, loading only the model's vocabulary."""
        from pyllama_long.opened import open_vocabulary
        from pyllama_long.prompt import encode

        with closing(open_vocabulary(self.file)) as model:
            yield lambda text: encode(model, text)[0]

    def default_ctx(self) -> int:
        """The trained length, or 32768 tokens if that is more, as long as the cache fits into half of the free
        memory."""
        info = self.info()
        wanted = max(info.n_train, DEFAULT_CTX)
        per_token = info.kv_bytes_per_token(self.kv_type)
        room = max(0, memory.available() - info.file_bytes) // 2
        fits = int(room / per_token) // 256 * 256 if per_token else wanted
        return min(wanted, max(MIN_CTX, fits))


@dataclass(frozen=True)
class AdaptedModelOptions(ModelOptions):
    """The same, with an adapter that is added to the model's weights."""

    lora: Lora = None
    lora_scale: LoraScale = 1.0

    def __post_init__(self) -> None:
        if self.lora is None and self.lora_scale != 1:
            raise typer.BadParameter("--lora-scale needs --lora FILE")

    def adapter(self) -> dict[str, Any]:
        return {} if self.lora is None else {"lora_path": str(self.lora), "lora_scale": self.lora_scale}


def adapters(given: Sequence[str]) -> list[tuple[str, float]]:
    """Files and scales of FILE[=SCALE]. Raises BadParameter for a scale that is not a number."""
    found = []
    for text in given:
        path, equals, scale = text.rpartition("=")
        if not equals or Path(text).exists():
            path, scale = text, "1"
        try:
            value = float(scale)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise typer.BadParameter(
                f"--lora {text}: {scale!r} is no scale; give FILE=0.5, or FILE alone for 1"
            )
        found.append((path, value))
    return found
