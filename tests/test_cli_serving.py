"""Signals at every state of a server."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import httpx
from asking import STREAMS, Asked, body, gauge, prose, wait_until
from serving import serving

from pyllama_long.engine import seqfile


def test_a_signal_at_each_state_of_a_request(tmp_path: Path) -> None:
    options = ("--ctx", "200000", "--drain", "0.1", "--parallel", "6", "--cache-dir", str(tmp_path))
    with serving(*options, "--embeddings") as (process, url):
        asked = [Asked(url, "/completion", body("/completion", "Once", True, 20_000))]
        wait_until(lambda: gauge(url, "engine_running") == 1)
        asked += [Asked(url, path, body(path, path + prose(500), True)) for path in STREAMS]  # read
        wait_until(lambda: gauge(url, "engine_running") == 6)
        asked += [
            Asked(url, path, body(path, prose(3), stream)) for path in STREAMS for stream in (True, False)
        ]
        wait_until(lambda: gauge(url, "engine_waiting") == 10)
        many = [{"role": "user", "content": "word"}] * 40_000
        prepared = [
            *(Asked(url, "/v1/embeddings", {"input": [prose(60)] * 50, "model": "demo"}) for _ in range(2)),
            Asked(url, "/apply-template", {"messages": many}),
            Asked(url, "/v1/messages/count_tokens", {"messages": many, "model": "demo"}),
            *(Asked(url, "/tokenize", {"content": "word and " * 1_000_000}) for _ in range(3)),
        ]
        slow = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 10)
        slow.sendall(b"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{")
        time.sleep(0.4)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert time.monotonic() - began < 4  # nothing has to be waited for
        for one in [*asked, *prepared]:
            one.join(30)
        there = [one for one in prepared if one.status]
        assert len(there) > 3, [one.text for one in prepared]
        for one in [*asked, *there]:
            one.check()
        assert slow.recv(1 << 16).startswith(b"HTTP/1.1 503")
        slow.close()


def test_a_body_that_does_not_come_keeps_no_server() -> None:
    with serving("--ctx", "4096", "--drain", "30") as (process, url):
        asked = Asked(url, "/completion", body("/completion", "Once", True, 1000))
        wait_until(lambda: gauge(url, "engine_running") == 1)
        slow = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 20)
        slow.sendall(b"POST /completion HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{")
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert slow.recv(1 << 16).startswith(b"HTTP/1.1 503")
        assert time.monotonic() - began < 10
        slow.close()
        assert process.wait(25) == 0
        asked.join(30)
        assert asked.status == 200 and '"tokens_predicted":1000' in asked.text


def test_a_signal_while_a_session_is_saved(tmp_path: Path) -> None:
    """A session is whole or absent, and present if that was reported."""
    with serving("--ctx", "30000", "--drain", "0", "--cache-dir", str(tmp_path)) as (process, url):
        text = prose(150)
        httpx.post(f"{url}/completion", json={"prompt": text, "n_predict": 1}, timeout=60)
        asked = [Asked(url, "/v1/sessions", {"name": f"s{i}", "prompt": text}) for i in range(5)]
        wait_until(lambda: bool(list(tmp_path.rglob("*.session*"))))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        for one in asked:
            one.join(30)
            if one.status not in (0, 200):
                one.check()
        n_kept = sum(one.status == 200 for one in asked)
        kept = list(tmp_path.rglob("*.session"))
        assert n_kept <= len(kept) <= 5
        for path in kept:
            assert seqfile.read(path)[0].n_tokens > 1000


SLOW = textwrap.dedent(
    """
    import sys, time
    from pyllama_long.engine import context

    def slowly(self, *given, opened=context.Context._open):
        opened(self, *given)
        time.sleep(0.6)

    context.Context._open = slowly
    from pyllama_long.cli import main
    main()
    """
)


def test_a_signal_while_the_model_is_loaded() -> None:
    command = [
        sys.executable,
        "-c",
        SLOW,
        "serve",
        "--port",
        "0",
        "--threads",
        "1",
        "--ctx",
        "512",
        "--drain",
        "0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(0.2)
        port = listening_port(process.pid)
        found = httpx.post(f"http://127.0.0.1:{port}/completion", json={"prompt": "Once"}, timeout=10)
        assert found.status_code == 503 and found.json()["error"]["code"] == "loading"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0 and "ready" not in out and "Traceback" not in err, err


def test_a_signal_before_anything_is_loaded() -> None:
    code = """if True:
        import time
        from pyllama_long.cli import main, model_options
        model_options.ModelOptions.info = lambda self: (print("begins", flush=True), time.sleep(20))
        main()
    """
    command = [sys.executable, "-c", code, "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=15)
    assert (process.returncode, err) == (0, "")


def listening_port(pid: int) -> int:
    """The address at which a process listens, once it does and the model is being loaded."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        own = set()
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                own.add(str(link.readlink()))
            except OSError:
                continue
        for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                return int(fields[1].partition(":")[2], 16)
        time.sleep(0.05)
    raise AssertionError("nothing listens")
