"""Tokenizes texts with one vocabulary, each in a child process of its own, so that a crash is noticed.

python worker.py FILE SECONDS    reads a JSON list of texts, writes one JSON list per text: [hash, tokens, seconds],
                                 or [how it ended]
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
import time

from pyllama_long.errors import ModelError
from pyllama_long.model import Model
from pyllama_long.opened import open_vocabulary


def answer(model: Model, text: str) -> list[object]:
    begin = time.perf_counter()
    try:
        tokens = model.tokenize(text.encode(), True, True)
    except ValueError as error:
        return [str(error)[:200]]
    digest = hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]
    return [digest, len(tokens), round(time.perf_counter() - begin, 3)]


def apart(model: Model, text: str, seconds: int) -> list[object]:
    """The answer of a child, or the name of the signal that ended it."""
    source, target = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(seconds)
        os.close(source)
        os.write(target, json.dumps(answer(model, text)).encode())
        os._exit(0)
    os.close(target)
    data = b""
    while part := os.read(source, 65536):
        data += part
    os.close(source)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return [signal.Signals(os.WTERMSIG(status)).name]
    found: list[object] = json.loads(data)
    return found


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # upstream prints there too
    try:
        model = open_vocabulary(sys.argv[1])
    except ModelError as error:
        print(json.dumps([str(error)]), file=out, flush=True)
        return
    for text in json.load(sys.stdin):
        print(json.dumps(apart(model, text, int(sys.argv[2]))), file=out, flush=True)
    os._exit(0)  # two copies of libllama's functions do not free each other's vocabulary


if __name__ == "__main__":
    main()
