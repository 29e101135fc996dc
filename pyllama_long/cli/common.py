"""What the commands share: options, errors, the model to open, the prefill bar, numbers for people."""

from __future__ import annotations

import codecs
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from pyllama_long import lengths, memory
from pyllama_long.context_options import KV_TYPES, MAX_THREADS, PRECISIONS
from pyllama_long.gguf_file import GGUFError, GGUFFile, read_parts
from pyllama_long.model_info import ModelInfo, model_info

if TYPE_CHECKING:
    from pyllama_long.llama import LongLlama

PROGRAM = "pyllama-long"
DEFAULT_CTX = 32768  # for models that were trained at fewer
LEAST_CTX = 512
MOST_CTX = 2**31 - 1
EMBEDDED = ("demo", "longnet", "longnet-dense")


class CommandError(ValueError):
    """One line for the user; the program ends with exit code 1."""


@contextmanager
def refused() -> Iterator[None]:
    """For options that do not fit together or to the model: turns a ValueError into a CommandError."""
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError:  # errors of a plan, a policy or a context are reported as they are
            raise
        raise CommandError(str(error)) from None


def _kv_type(value: str) -> str:
    if value not in KV_TYPES:
        raise typer.BadParameter(f"{value!r}; known: {', '.join(KV_TYPES)}")
    return value


def _precision(value: str) -> str:
    if value not in PRECISIONS:
        raise typer.BadParameter(f"{value!r}; known: {', '.join(PRECISIONS)}")
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def length(least: int = 1, most: int = MOST_CTX, times: bool = True) -> Callable[[str], int]:
    """A parser for options that are lengths. times: multiples of the trained length are allowed too."""

    def parse(value: str | int) -> int:
        try:
            found = lengths.parse(str(value), least, most) if not isinstance(value, int) else value
        except lengths.LengthError as error:
            raise typer.BadParameter(str(error)) from None
        if isinstance(found, lengths.Times) and not times:
            raise typer.BadParameter(
                f"{value} is in times of a trained length, and there is no model: give tokens"
            )
        return found

    return parse


_MODEL, _SAMPLING = "Model", "Sampling"

Model = Annotated[
    Path | None,
    typer.Option(
        "-m",
        "--model",
        metavar="FILE",
        help=f"A GGUF file, or an embedded model: {', '.join(EMBEDDED)}.",
        rich_help_panel=_MODEL,
    ),
]
Hub = Annotated[
    str | None,
    typer.Option(
        "--hf",
        metavar="REPO[:FILE]",
        help="A model of the Hugging Face hub, downloaded once.",
        rich_help_panel=_MODEL,
    ),
]
Attention = Annotated[
    str,
    typer.Option(
        metavar="PLAN",
        help="Which keys are read: auto, exact, skim, streaming, 'sinks(4)+window(4096)', ..., or upstream.",
        rich_help_panel=_MODEL,
    ),
]
Rope = Annotated[
    str,
    typer.Option(
        metavar="POLICY",
        help="Positions beyond the trained length: auto, native, yarn, 'rerope(4096)+logn', dca, ...",
        rich_help_panel=_MODEL,
    ),
]
Ctx = Annotated[
    int,
    typer.Option(
        parser=length(0),
        metavar="N",
        help="Context: tokens (8192, 128k) or times the trained length (4x); 0: chosen.",
        rich_help_panel=_MODEL,
    ),
]
KvType = Annotated[
    str,
    typer.Option(
        callback=_kv_type, metavar="TYPE", help=f"KV cache: {', '.join(KV_TYPES)}.", rich_help_panel=_MODEL
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        callback=_precision,
        metavar="|".join(PRECISIONS),
        help="Of attention. auto: the fastest the processor has; f32: float32 throughout.",
        rich_help_panel=_MODEL,
    ),
]
Threads = Annotated[
    int,
    typer.Option(min=0, max=MAX_THREADS, metavar="N", help="CPU threads; 0: chosen.", rich_help_panel=_MODEL),
]
Lora = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A LoRA adapter, as a GGUF file.", rich_help_panel=_MODEL),
]
Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE[=SCALE]",
        help="A LoRA adapter, and how much of it; repeatable.",
        rich_help_panel=_MODEL,
    ),
]
LoraScale = Annotated[
    float, typer.Option(callback=_finite, metavar="X", help="How much of it.", rich_help_panel=_MODEL)
]
MaxTokens = Annotated[
    int, typer.Option(min=1, metavar="N", help="Longest answer.", rich_help_panel=_SAMPLING)
]
Temp = Annotated[
    float,
    typer.Option(
        min=0.0,
        callback=_finite,
        metavar="T",
        help="0: always the likeliest token.",
        rich_help_panel=_SAMPLING,
    ),
]
TopK = Annotated[int, typer.Option(min=0, metavar="N", help="0: off.", rich_help_panel=_SAMPLING)]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, metavar="P", rich_help_panel=_SAMPLING)]
MinP = Annotated[float, typer.Option(min=0.0, max=1.0, metavar="P", rich_help_panel=_SAMPLING)]
RepeatPenalty = Annotated[
    float,
    typer.Option(min=0.0, callback=_finite, metavar="X", help="1: off.", rich_help_panel=_SAMPLING),
]
Seed = Annotated[
    int, typer.Option(min=-1, metavar="N", help="-1: a new one each time.", rich_help_panel=_SAMPLING)
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on stdout.")]


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


@dataclass(frozen=True)
class Sampling:
    max_tokens: int = 512
    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int = -1

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of Llama.create_completion and create_chat_completion."""
        found = dict(vars(self))
        found["seed"] = None if self.seed < 0 else self.seed
        return found


@dataclass(frozen=True)
class ModelOptions:
    model: Path | None = None
    hub: str | None = None
    attention: str = "auto"
    rope: str = "auto"
    ctx: int = 0
    kv_type: str = "f16"
    precision: str = "auto"
    threads: int = 0
    lora: Path | None = None
    lora_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.lora is None and self.lora_scale != 1:
            raise typer.BadParameter("--lora-scale needs --lora FILE")

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
        return embedded_model() if self.hub is None else _download(self.hub)

    @cached_property
    def file(self) -> GGUFFile:
        """The model's header, read once."""
        return read_parts(self.path())

    def info(self) -> ModelInfo:
        return model_info(self.file)

    def n_ctx(self, chosen: int) -> int:
        """The value of --ctx in tokens; without it, `chosen`."""
        try:
            return lengths.in_tokens(self.ctx, self.info().n_train, MOST_CTX) if self.ctx else chosen
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
                lora_path=None if self.lora is None else str(self.lora),
                lora_scale=self.lora_scale,
                **threads,
            )

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
        return min(wanted, max(LEAST_CTX, fits))


def embedded_model(name: str = "demo") -> Path:
    """The file of one of EMBEDDED. Raises CommandError when it is missing."""
    path = Path(str(resources.files("pyllama_long") / "data" / f"{name}.gguf"))
    if not path.is_file():
        raise CommandError("the embedded model is missing from this installation: install pyllama-long again")
    return path


def _download(spec: str) -> Path:
    from pyllama_long.cli.hub import download

    return download(spec)


def state_folder() -> Path:
    """The folder where this user's programs keep their state (XDG, or the system's own place)."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / PROGRAM


def read_text(path: Path) -> str:
    """A text file, or stdin for `-`; CommandError when it cannot be read or is not text."""
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror or error}") from None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # PowerShell's encoding
        return data.decode("utf-16", errors="replace")
    if b"\0" in data:
        raise CommandError(f"{path} is not a text file")
    return data.decode("utf-8-sig", errors="replace")


def plain(argument: str) -> str:
    """Text of a command line; bytes that are not UTF-8 become the replacement character."""
    return re.sub("[\ud800-\udfff]", "\ufffd", argument)


def clean(text: str) -> str:
    """Text of a model without control characters, which a terminal would obey."""
    return "".join(c for c in text if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f"))


def size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.3g} {unit}" if unit != "B" else f"{n_bytes:.0f} B"
        n_bytes /= 1024
    return f"{n_bytes:.3g} TiB"


class Prefill:
    """The progress callback of a prompt: shows a bar if the console is a terminal, and computes the rate of
    reading."""

    _SHOWN_FROM = 512  # tokens; shorter prompts are over before a bar can be read

    def __init__(self, console: Console, label: str = "reading") -> None:
        self.console, self.label = console, label
        self.bar: Progress | None = None
        self.chunk, self.before, self.done = 0, -1, 0
        self.started = self.finished = time.perf_counter()

    @contextmanager
    def reading(self, chunk: int) -> Iterator[None]:
        """Wraps one prompt, which is read `chunk` tokens at a time: starts the clock, and always removes the bar at
        the end."""
        self.chunk, self.before, self.done = chunk, -1, 0
        self.started = self.finished = time.perf_counter()
        try:
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    @property
    def new(self) -> int:
        """Tokens of the prompt that were not already in the cache."""
        return max(0, self.done - max(0, self.before))

    @property
    def rate(self) -> float:
        """New tokens per second."""
        return self.new / max(self.finished - self.started, 1e-9)

    def __call__(self, done: int, total: int) -> None:
        if self.before < 0:
            self.before = max(0, done - self.chunk)
        self.done, self.finished = done, time.perf_counter()
        if self.bar is None and done < total and total >= self._SHOWN_FROM and self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens, {task.fields[rate]:,.0f}/s"),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
            )
            self.task = self.bar.add_task(self.label, total=total, rate=0.0)
            self.bar.start()
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=total, rate=self.rate)
            if done >= total:
                self.stop()
