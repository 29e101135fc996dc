"""The command line: `pyllama-long`, also `python -m pyllama_long`. One module per command."""

from __future__ import annotations

import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, NoReturn, TextIO

try:
    import typer

    from pyllama_long import __version__
    from pyllama_long.cli import chat, complete, demo, eval, inspect, plan, serve
    from pyllama_long.cli.command_error import CommandError
    from pyllama_long.cli.folders import PROGRAM
    from pyllama_long.cli.option_groups import flat
    from pyllama_long.errors import (
        Cancelled,
        ContextOverflow,
        DecodeError,
        EngineClosed,
        ModelError,
        QueueFull,
    )
    from pyllama_long.gguf_file import GGUFError
    from pyllama_long.plan_error import PlanError
    from pyllama_long.rope import RopeError
except KeyboardInterrupt:  # imports can take seconds, before any code of ours could report Ctrl-C
    print("pyllama-long: stopped", file=sys.stderr)
    sys.exit(130)

__all__ = ["app", "main", "run"]

_STOPPED = 130  # exit code after Ctrl-C
_KNOWN = (ModelError, Cancelled, DecodeError, QueueFull, EngineClosed)  # with messages for users

app = typer.Typer(
    name=PROGRAM,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Long contexts for GGUF models on your own machine.",
    epilog="\b\n[b]Begin with[/b]\n"
    "  pyllama-long demo                    a document of 100 times the trained length, read and asked\n"
    "  pyllama-long chat -m model.gguf      talk; /read FILE puts a document in\n"
    "  pyllama-long serve -m model.gguf     the APIs of OpenAI, Anthropic and llama.cpp, and a page\n"
    "  pyllama-long inspect model.gguf      what fits, and what would be chosen for it",
)
for module in (chat, complete, serve, inspect, plan, eval, demo):
    app.command(name=module.__name__.rpartition(".")[2], epilog=module.EXAMPLES)(flat(module.command))


def _version(value: bool) -> None:
    if value:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """The program. It exits with 0, 1 for an error, 2 for wrong usage, or 130 for Ctrl-C."""
    if sys.argv[1:2] == ["serve"]:  # a server that is told to end before it serves ends without an error
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _open_what_is_closed()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        _take_any_text(stream)
    warnings.showwarning = _warn
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; errors become one line on stderr."""
    try:
        result = app(args=list(arguments) or ["--help"], prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
        if not arguments:
            return 2
        if result == _STOPPED:  # newer versions of typer return it in place of raising KeyboardInterrupt
            return _fail("stopped", _STOPPED)
        return result if isinstance(result, int) else 0
    except KeyboardInterrupt:
        return _fail("stopped", _STOPPED)
    except BrokenPipeError:  # the reader of our output is gone, as with `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("PYLLAMA_DEBUG") == "1":
            raise
        return _report(error)


def _report(error: Exception) -> int:
    if hasattr(error, "format_message"):  # typer's errors of usage
        message = str(error.format_message())
        ctx = getattr(error, "ctx", None)
        command = PROGRAM if ctx is None else ctx.command_path
        return _fail(f"{message} (see {command} --help)", int(getattr(error, "exit_code", 2)))
    if isinstance(error, (PlanError, RopeError)):
        return _fail(_in_options(str(error)), 2)
    if isinstance(error, typer.Abort):
        return _fail("stopped", _STOPPED)
    if isinstance(error, ContextOverflow):
        most = f"{error.n_tokens:,} tokens and an answer do not fit into the context of {error.n_ctx:,}"
        return _fail(f"{most}: shorten the text, or use a larger --ctx", 1)
    if isinstance(error, (CommandError, GGUFError, ImportError, *_KNOWN)):
        return _fail(_in_options(str(error)), 1)
    if isinstance(error, OSError) and error.strerror:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror, 1)
    if isinstance(error, MemoryError):
        return _fail("not enough memory: try a smaller --ctx, or --kv-type q8_0", 1)
    return _fail(f"{type(error).__name__}: {error} (PYLLAMA_DEBUG=1 shows where)", 1)


def _warn(message: Warning | str, *_where: object, **_more: object) -> None:
    """Shows warnings without their place in the source, since they are for the user."""
    print(f"{PROGRAM}: warning: {_in_options(' '.join(str(message).split()))}", file=sys.stderr)


def _in_options(text: str) -> str:
    """Names command-line options in a message in place of the keyword arguments that they become."""
    text = re.sub(r"\bn_ctx\b", "--ctx", text)
    return re.sub(
        r"\b(attention|rope|kv_type|precision|max_tokens)=('[^']*'|(?=\w))",
        lambda found: f"--{found[1].replace('_', '-')} {found[2]}",
        text,
    )


def _fail(message: str, code: int) -> int:
    print(f"{PROGRAM}: {' '.join(message.split())}", file=sys.stderr)
    return code


def _open_what_is_closed() -> None:
    """Replaces a standard stream that the caller has closed by /dev/null."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _take_any_text(stream: TextIO) -> None:
    """Replaces what cannot be decoded or printed by the replacement character or a question mark."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
