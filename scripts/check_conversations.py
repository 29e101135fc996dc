"""Long conversations with models whose memory cannot go back: how much is read again when a message is edited.

    python scripts/check_conversations.py                             # 30,000 tokens, qwen35 and gemma3
    python scripts/check_conversations.py --tokens 3000 --every 256 --archs qwen35,gemma3,mamba,lfm2

For each architecture, a model with random weights and a conversation of random words. Through `pyllama-long serve` on
loopback, through the same server after a restart, and with LongLlama: the conversation is asked, then asked with
another message k, then goes on. Through the server, that happens beside other conversations. Each row must satisfy:
the tokens evaluated are at most those after the last message before the edited one, and one interval; the greedy
answer is that of a fresh evaluation, up to a token whose two likeliest choices differ by less than 0.02; the
checkpoints in memory take no more than --ram. Prints a table, then one JSON line: {"tokens", "every", "rows": [...],
"wrong"}; the exit code is 1 if a row is wrong.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import make_random_gguf
from rich import box
from rich.console import Console
from rich.table import Table

from pyllama_long import LongLlama
from pyllama_long._native import llama_cpp
from pyllama_long.arrays import MIN_PREFILL
from pyllama_long.opened import open_vocabulary

Message = dict[str, str]
ROOT = Path(__file__).parents[1]
ANSWER, NEAR = 12, 0.02  # tokens; of two log-probabilities
LOGPROBS: dict[str, Any] = {"logprobs": True, "top_logprobs": 2}
SMALL: dict[str, Any] = {"n_embd": 64, "n_head": 2, "n_head_kv": 1, "head_dim": 32, "n_ff": 64}
SHAPES = {"gemma3": {"n_layer": 3, "sliding_pattern": 3}, "qwen35": {"n_layer": 4}, "mamba": {"n_layer": 2}}


@dataclass
class Row:
    """edited: the message that is another one, from 0; the number of messages where it only goes on. allowed: tokens
    that may be evaluated. answer: the same, a near tie, or another."""

    arch: str
    side: str
    edited: int
    messages: int
    prompt: int
    evaluated: int
    allowed: int
    answer: str

    @property
    def right(self) -> bool:
        return self.answer != "another" and 0 < self.evaluated <= self.allowed


@dataclass(frozen=True)
class Said:
    """An answer, and for each of its tokens the text, and how much likelier it is than the next one."""

    text: str
    tokens: list[tuple[str, float]]

    @staticmethod
    def of(choice: Any) -> Said:
        """Of a choice in OpenAI's form, with logprobs of two tokens."""
        found = []
        for token in choice["logprobs"]["content"]:
            likely = sorted((one["logprob"] for one in token["top_logprobs"]), reverse=True)
            # Tokens without a text of their own are listed once.
            found.append((token["token"].strip(), likely[0] - likely[1] if len(likely) > 1 else 0.0))
        return Said(choice["message"]["content"] or "", found)

    def compared(self, expected: Said) -> str:
        if self.text.strip() == expected.text.strip():
            return "the same"
        pairs = zip(self.tokens, expected.tokens, strict=False)
        margin = next((margin for (text, _), (wanted, margin) in pairs if text != wanted), 1.0)
        return "a near tie" if margin < NEAR else "another"


class Talk:
    """A conversation of about `tokens` tokens, and its tokens under the model's template."""

    def __init__(self, path: Path, tokens: int, seed: int, messages: int) -> None:
        self._rng, self._path = random.Random(seed), path
        self._edited: dict[int, list[Message]] = {}
        shares = [self._rng.uniform(0.2, 1.8) for _ in range(messages)]
        with closing(open_vocabulary(path)) as model:
            per_word = len(model.tokenize(self.words(400).encode(), False, False)) / 400
        sizes = [max(4, int(share * tokens / sum(shares) / per_word)) for share in shares]
        self.messages: list[Message] = [
            {"role": ("user", "assistant")[i % 2], "content": self.words(size)}
            for i, size in enumerate(sizes)
        ]
        if messages % 2 == 0:
            self.messages.append({"role": "user", "content": self.words(20)})

    def words(self, n: int) -> str:
        letters = "etaoinshrdlcumwfgypbvk"
        return " ".join("".join(self._rng.choices(letters, k=self._rng.randint(2, 7))) for _ in range(n))

    def edited(self, k: int) -> list[Message]:
        """With another message k. After the last one: an answer that is not the model's own, and a new question."""
        if k not in self._edited:
            role = ("user", "assistant")[k % 2]
            more = [{"role": role, "content": self.words(30)}, *self.messages[k + 1 :]]
            question = {"role": "user", "content": self.words(15)}
            self._edited[k] = [*self.messages[:k], *more, *([question] if k == len(self.messages) else [])]
        return self._edited[k]

    def tokens(self, messages: Sequence[Message], asked: bool = True) -> int:
        """The number of a prompt's tokens. asked: with the marks of the answer."""
        text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        with closing(open_vocabulary(self._path)) as model:
            return len(model.tokenize((text + "<|im_start|>assistant\n" * asked).encode(), True, True))

    def row(self, arch: str, side: str, k: int, every: int, evaluated: int, answer: str) -> Row:
        n = self.tokens(self.edited(k))
        before = self.tokens(self.messages[:k], asked=False)
        # At least so many tokens of a prompt are evaluated: the last of them are in its last message.
        allowed = n - before + every + MIN_PREFILL
        return Row(arch, side, k, len(self.messages), n, evaluated, allowed, answer)


# ---- through the server ------------------------------------------------------------------------------------


@contextmanager
def serving(args: argparse.Namespace, path: Path, folder: Path, keys: Path) -> Iterator[str]:
    """The server's address. It ends as by Ctrl-C, and writes what it keeps."""
    command = [sys.executable, "-m", "pyllama_long", "serve", "-m", str(path), "--port", "0"]
    command += ["--ctx", str(2 * args.tokens), "--rope", "native", "--precision", "f32", "--no-page"]
    command += ["--cache-dir", str(folder), "--cache-disk", "8", "--api-key-file", str(keys)]
    command += ["--checkpoint-every", str(args.every), "--checkpoint-ram", str(args.ram)]
    command += ["--threads", str(args.threads)] if args.threads else []
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if " is ready at http" not in line:
                raise RuntimeError(f"the server did not start: {(folder / 'log').read_text()[-300:]}")
            yield line.split()[-1]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)
            if process.stdout is not None:
                process.stdout.close()


class Client:
    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=None)

    def close(self) -> None:
        self.http.close()

    def ask(self, messages: Sequence[Message], key: str) -> tuple[Said, int]:
        """The greedy answer, and the prompt tokens that were evaluated for it."""
        body = {"model": "m", "messages": messages, "temperature": 0, "max_tokens": ANSWER}
        body |= LOGPROBS
        reply = self.http.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"})
        if reply.status_code != 200:
            raise RuntimeError(reply.text[:300])
        found = reply.json()
        usage = found["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return Said.of(found["choices"][0]), usage["prompt_tokens"] - cached

    def memory(self, key: str) -> int:
        """Bytes of checkpoints in main memory."""
        props = self.http.get("/props", headers={"Authorization": f"Bearer {key}"}).json()
        return int(props["stats"]["checkpoint_bytes"])


def check_server(
    args: argparse.Namespace, arch: str, path: Path, talk: Talk, expected: dict[int, Said], folder: Path
) -> Iterator[Row]:
    keys = folder / "keys"
    folder.mkdir()
    keys.write_text("main\nothers\n")
    others = [Talk(path, args.tokens // 10, 100 + i, 6) for i in range(args.others)]
    edits = places(args, talk)

    def rows(client: Client, side: str, wanted: Sequence[int]) -> Iterator[Row]:
        for k in wanted:
            said, evaluated = client.ask(talk.edited(k), "main")
            if client.memory("main") > args.ram * 2**30:
                raise RuntimeError("the checkpoints take more memory than is set")
            yield talk.row(arch, side, k, args.every, evaluated, said.compared(expected[k]))

    with serving(args, path, folder, keys) as url, closing(Client(url)) as client:
        stop = threading.Event()
        client.ask(talk.messages, "main")

        def chatter(other: Talk) -> None:
            with closing(Client(url)) as mine:
                for k in itertools.cycle(range(len(other.messages))):
                    if stop.is_set():
                        break
                    mine.ask(other.edited(k), "others")

        threads = [threading.Thread(target=chatter, args=(other,)) for other in others]
        for thread in threads:
            thread.start()
        try:
            yield from rows(client, f"server beside {len(others)}", edits)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    with serving(args, path, folder, keys) as url, closing(Client(url)) as client:
        yield from rows(client, "after a restart", others_of(edits))


# ---- with LongLlama ----------------------------------------------------------------------------------------


def check_llama(
    args: argparse.Namespace, arch: str, path: Path, talk: Talk, expected: dict[int, Said]
) -> Iterator[Row]:
    """Also fills in the expected answers, each from an empty cache."""
    with closing(open_llama(args, path)) as llm:
        for k in (*places(args, talk), *others_of(places(args, talk))):
            llm.sequence.keep(0)
            expected[k] = say(llm, talk.edited(k))[0]
        for k in places(args, talk):
            say(llm, talk.messages)
            said, evaluated = say(llm, talk.edited(k))
            yield talk.row(arch, "LongLlama", k, args.every, evaluated, said.compared(expected[k]))


def open_llama(args: argparse.Namespace, path: Path) -> LongLlama:
    limits = {"checkpoint_every": args.every, "checkpoint_ram": int(args.ram * 2**30)}
    threads = {"n_threads": args.threads, "n_threads_batch": args.threads} if args.threads else {}
    n_ctx = args.tokens + 2048
    return LongLlama(path, n_ctx, rope="native", precision="f32", swa_full=False, **limits, **threads)


def say(llm: LongLlama, messages: Sequence[Message]) -> tuple[Said, int]:
    def evaluated() -> int:
        perf = llama_cpp.llama_perf_context(llm.ctx)
        return int(perf.n_p_eval + perf.n_eval)

    before = evaluated()
    found = llm.create_chat_completion(messages=list(messages), temperature=0, max_tokens=ANSWER, **LOGPROBS)
    n = evaluated() - before - max(0, found["usage"]["completion_tokens"] - 1)
    return Said.of(found["choices"][0]), n


# ---- the whole ---------------------------------------------------------------------------------------------


def places(args: argparse.Namespace, talk: Talk) -> list[int]:
    """The messages that are edited: the end of the conversation, and others from there to its beginning."""
    n = len(talk.messages)
    return [n, *(round(n * (1 - (i + 1) / (args.edits + 1))) for i in range(args.edits))]


def others_of(edits: Sequence[int]) -> list[int]:
    """Messages that are edited after a restart."""
    return [k - 2 for k in edits if k > 1]


def check(args: argparse.Namespace, arch: str) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{arch}.gguf"
        shape = {**SMALL, **SHAPES.get(arch, {}), "n_ctx_train": 2 * args.tokens}
        make_random_gguf.write(path, arch, type="f32", seed=args.seed, **shape)
        talk = Talk(path, args.tokens, args.seed, args.messages)
        expected: dict[int, Said] = {}
        yield from check_llama(args, arch, path, talk, expected)
        yield from check_server(args, arch, path, talk, expected, Path(folder) / "cache")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=30_000, help="of the conversation (%(default)s)")
    parser.add_argument("--messages", type=int, default=40, help="of the conversation (%(default)s)")
    parser.add_argument("--edits", type=int, default=4, help="messages that are edited (%(default)s)")
    parser.add_argument("--every", type=int, default=2048, help="tokens between checkpoints (%(default)s)")
    parser.add_argument("--ram", type=float, default=1.0, help="GiB of checkpoints (%(default)s)")
    parser.add_argument("--others", type=int, default=8, help="conversations beside it (%(default)s)")
    parser.add_argument("--archs", default="qwen35,gemma3", help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="0: chosen (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    args = parser.parse_args(argv)
    console, found = Console(stderr=True), []
    try:
        for arch in args.archs.split(","):
            for row in check(args, arch):
                found.append(row)
                console.print(f"{row.arch} {row.side} {row.edited}: {'right' if row.right else 'WRONG'}")
    except (RuntimeError, OSError, ValueError, httpx.HTTPError) as error:
        print(f"check_conversations: error: {error}", file=sys.stderr)
        return 1
    report(args, found)
    return int(any(not row.right for row in found))


def report(args: argparse.Namespace, found: Sequence[Row]) -> None:
    table = Table(box=box.SIMPLE)
    for name in ("model", "through", "edited", "prompt", "evaluated", "allowed", "answer"):
        table.add_column(name, justify="left" if name in ("model", "through", "answer") else "right")
    for row in found:
        edited = f"{row.edited} of {row.messages}" if row.edited < row.messages else "goes on"
        numbers = (f"{n:,}" for n in (row.prompt, row.evaluated, row.allowed))
        table.add_row(row.arch, row.side, edited, *numbers, row.answer)
    Console().print(table)
    wrong = sum(not row.right for row in found)
    rows = [asdict(row) for row in found]
    print(json.dumps({"tokens": args.tokens, "every": args.every, "rows": rows, "wrong": wrong}))


if __name__ == "__main__":
    sys.exit(main())
