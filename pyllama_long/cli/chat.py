"""`chat`: a conversation in the terminal."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from pyllama_long.cli.chat_input import open_input
from pyllama_long.cli.command_error import CommandError
from pyllama_long.cli.folders import state_folder
from pyllama_long.cli.model_options import AdaptedModelOptions
from pyllama_long.cli.prefill import Prefill
from pyllama_long.cli.sampling import Sampling
from pyllama_long.cli.texts import clean, plain, read_text, writing

if TYPE_CHECKING:
    from pyllama_long.llama import LongLlama

EXAMPLES = """\b
[b]Examples[/b]
  pyllama-long chat -m model.gguf
  pyllama-long chat -m model.gguf --ctx 131072 --attention skim --kv-type q8_0
  pyllama-long chat --hf ggml-org/gemma-3-1b-it-GGUF --system 'Answer in one sentence.'
\b
[b]In the chat[/b]
  Enter sends, Alt-Enter begins a new line, Ctrl-C stops an answer, Ctrl-D leaves; /help lists the commands.
"""
_SAMPLING = Sampling(max_tokens=1024)


def command(
    *,
    options: AdaptedModelOptions,
    system: Annotated[str, typer.Option(metavar="TEXT", help="What the model is told first.")] = "",
    sampling: Sampling = _SAMPLING,
) -> None:
    """Talk to a model."""
    out = Console(highlight=False)
    prefill = Prefill(Console(stderr=True))
    llm = options.open(options.default_ctx(), prefill)
    chat = Chat(llm, sampling, prefill, out, plain(system))
    lines = open_input(state_folder() / "history", sorted(chat.commands))
    out.print(Text(f"{options.path().name}, {llm.n_ctx():,} tokens of context; /help for help", style="dim"))
    if not options.info().chat_template:
        chat.note(f"this file has no chat template: messages are put as {llm.chat_format!r} has them")
    while True:
        try:
            if not chat.take(lines.read()):
                return
        except EOFError:
            return
        except KeyboardInterrupt:
            out.print(Text("Ctrl-D or /quit leaves", style="dim"))


class Chat:
    """A conversation: messages in the form of the chat API, and the commands that change them."""

    def __init__(
        self, llm: LongLlama, sampling: Sampling, prefill: Prefill, out: Console, system: str = ""
    ) -> None:
        self.llm, self.sampling, self.prefill, self.out, self.system = llm, sampling, prefill, out, system
        self.messages: list[dict[str, str]] = []
        self.attached: list[str] = []
        self.last = ""  # what the last answer took
        self.commands: dict[str, Callable[[str], None]] = {
            "/read": self.read,
            "/clear": self.clear,
            "/save": self.save,
            "/regen": self.regen,
            "/stats": self.stats,
            "/help": self.help,
        }
        self.clear("")

    def take(self, line: str) -> bool:
        """One message or command; False when it was /quit."""
        line = line.strip()
        name, _, rest = line.partition(" ")
        if name in ("/quit", "/exit"):
            return False
        try:
            if name in self.commands:
                self.commands[name](rest.strip())
            elif name.startswith("/") and "/" not in name[1:] and "\n" not in name:
                raise CommandError(f"unknown command {name}; /help lists them")
            elif line:
                self.say(line)
        except CommandError as error:
            self.note(str(error))
        return True

    def say(self, text: str) -> None:
        content = "\n\n".join([*self.attached, text])
        self.messages.append({"role": "user", "content": content})
        if self.answer():
            self.attached = []

    def answer(self) -> bool:
        """Streams an answer to the last message. False: there was no answer, and the message is removed."""
        from pyllama_long.errors import Cancelled, ContextOverflow

        said, why, reason = "", "", None
        n, first, ended = 0, 0.0, 0.0
        try:
            with self.prefill.reading(self.llm.n_batch), stopped_by_ctrl_c(self.llm):
                for chunk in self.chunks():
                    reason = chunk["choices"][0]["finish_reason"] or reason
                    piece = chunk["choices"][0]["delta"].get("content")
                    if piece:
                        ended = time.perf_counter()
                        n, first = n + 1, first or ended
                        self.prefill.stop()
                        said += piece
                        self.out.print(Text(clean(piece)), end="", soft_wrap=True)
        except Cancelled:
            why = "stopped"
        except ContextOverflow as error:
            why = f"{error.n_tokens:,} tokens, more than the context of {error.n_ctx:,}: /clear, or use --ctx"
        except ValueError as error:  # of the model's chat template
            why = str(error)
        if said:
            self.messages.append({"role": "assistant", "content": said})
            self.out.print()
        else:
            self.messages.pop()
        if reason == "length" and not why:
            full = self.llm.n_tokens + 1 >= self.llm.n_ctx()
            why = "cut: the context is full: /clear, or use a larger --ctx"
            why = why if full else f"cut by --max-tokens {self.sampling.max_tokens}"
        if self.attached and not said:
            why = f"{why}; what was read in stays for the next message: /clear drops it".removeprefix("; ")
        if why:
            self.note(why)
        decode = f", {(n - 1) / (ended - first):,.1f} tokens/s written" if n > 1 and ended > first else ""
        self.last = f"{self.prefill.new:,} new tokens read at {self.prefill.rate:,.0f}/s{decode}"
        return bool(said)

    def chunks(self) -> Iterator[Any]:
        stream: Iterator[Any] = self.llm.create_chat_completion(
            messages=self.messages, stream=True, **self.sampling.arguments()
        )
        return stream

    def read(self, rest: str) -> None:
        """FILE [QUESTION]: put a text file before the next message, or before QUESTION"""
        if not rest:
            raise CommandError("/read needs a file: /read FILE [QUESTION]")
        path, question = file_and_question(rest)
        text = read_text(path.expanduser())
        n = len(self.llm.tokenize(text.encode(), add_bos=False))
        most = self.llm.n_ctx()
        if n >= most:
            raise CommandError(f"{path}: {n:,} tokens, more than the context of {most:,}: use a larger --ctx")
        self.attached.append(text)
        self.note(f"{path}: {n:,} tokens" + ("" if question else ", read with your next message"))
        if question:
            self.say(question)

    def clear(self, rest: str) -> None:
        """forget the conversation"""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.attached = []

    def save(self, rest: str) -> None:
        """FILE: write the conversation, as JSON when the name ends in .json"""
        if not rest:
            raise CommandError("/save needs a file: /save FILE")
        path = Path(rest).expanduser()
        if path.suffix == ".json":
            text = json.dumps(self.messages, indent=1, ensure_ascii=False)
        else:
            text = "\n\n".join(f"## {message['role']}\n\n{message['content']}" for message in self.messages)
        with writing(path):
            path.write_text(text + "\n", encoding="utf-8")
        self.note(f"wrote {path}")

    def regen(self, rest: str) -> None:
        """answer the last message again"""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise CommandError("there is no answer yet")
        old = self.messages.pop()
        question = self.messages[-1]
        if not self.answer():
            self.messages += [question, old]

    def stats(self, rest: str) -> None:
        """what is in use, and how fast the last answer was"""
        share = self.llm.attention_stats()["share_of_keys"]
        self.note(
            f"context: {self.llm.n_tokens:,} of {self.llm.n_ctx():,} tokens; trained at {self.llm.n_train:,}"
        )
        self.note(f"attention: {self.llm.plan}, {share:.1%} of the keys read; RoPE: {self.llm.rope}")
        self.note(f"last answer: {self.last}" if self.last else "no answer yet")

    def help(self, rest: str) -> None:
        """this list"""
        for name, function in self.commands.items():
            self.note(f"{name} {function.__doc__}")
        self.note("/quit, or Ctrl-D: leave")
        self.note("Enter sends, Alt-Enter begins a new line, Ctrl-C stops an answer")

    def note(self, text: str) -> None:
        self.out.print(Text(text, style="dim"), soft_wrap=True)


def file_and_question(rest: str) -> tuple[Path, str]:
    """The path at the beginning of a line, and the rest. The path may be quoted, have backslashes before blanks, or
    be as it is if such a file exists."""
    if rest[0] in "'\"":
        end = rest.find(rest[0], 1)
        if end < 0:
            raise CommandError(f"/read: the quote {rest[0]} has no end")
        return Path(rest[1:end]), rest[end + 1 :].strip()
    words = re.split(r"(?<!\\)\s+", rest)
    for n in range(len(words), 1, -1):  # the longest existing name, which may contain blanks
        found = re.match(r"\s+".join(map(re.escape, words[:n])), rest)
        if found is not None and _exists(found[0]):
            return Path(found[0]), rest[found.end() :].strip()
    return Path(re.sub(r"\\(.)", r"\1", words[0])), rest[len(words[0]) :].strip()


def _exists(name: str) -> bool:
    try:
        return Path(name).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False


@contextmanager
def stopped_by_ctrl_c(llm: LongLlama) -> Iterator[None]:
    """While this runs, Ctrl-C cancels the model's call instead of raising KeyboardInterrupt."""
    try:
        old = signal.signal(signal.SIGINT, lambda _number, _frame: llm.cancel())
    except ValueError:  # only the main thread may set handlers
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)
