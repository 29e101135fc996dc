"""Runs work in a child process, which may end by a signal or hang."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyllama_long import probe
from pyllama_long._native import llama_cpp


def forked(function: Callable[[], str], limit: float) -> tuple[str, str]:
    """Runs a function in a child process and returns (how it ended, what it returned). How: ok, exit N, SIGNAL or
    hang."""
    read, written = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        code = 3
        try:
            with os.fdopen(written, "w") as out:
                out.write(function())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(written)
    deadline, status = time.monotonic() + limit, 0
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(read)
            return "hang", ""
        time.sleep(0.001)
    with os.fdopen(read, errors="replace") as pipe:
        said = pipe.read()
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name, said
    return ("ok" if os.WEXITSTATUS(status) == 0 else f"exit {os.WEXITSTATUS(status)}"), said


def probe_forked(path: str, asked: dict[str, Any]) -> probe.Probed:
    """Does the same as probe._run, with the same limits and the same call, but in a fork of this process instead of a
    new one."""
    from pyllama_long import _probe_child

    folder = tempfile.mkdtemp()
    err = os.path.join(folder, "stderr")

    def work() -> str:
        fd = os.open(err, os.O_WRONLY | os.O_CREAT)
        os.dup2(fd, 2)
        _probe_child.limit()
        return json.dumps(_probe_child.answer(llama_cpp.llama_cpp._lib, asked))

    how, said = forked(work, 60)
    complaint = Path(err).read_bytes() if os.path.exists(err) else b""
    if os.path.exists(err):
        os.unlink(err)
    os.rmdir(folder)
    code = 0 if how == "ok" else -int(getattr(signal, how)) if how.startswith("SIG") else 1
    return probe.conclude(path, -int(signal.SIGXCPU) if how == "hang" else code, said.encode(), complaint)
