"""`pyllama-long serve` as a program: ready, drained, stopped, refused."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import trustme
from asking import WORDS, stream, until_it_runs
from serving import serving

from pyllama_long.cli.serving import listen


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_answers_finish(number: signal.Signals) -> None:
    with serving("--ctx", "2048") as (process, url):
        said: list[str] = []
        thread = stream(url, 1000, said)
        until_it_runs(url)
        process.send_signal(number)
        thread.join(60)
        assert process.wait(30) == 0
        assert '"tokens_predicted":1000' in said[0] and said[0].rstrip().endswith("[DONE]")


def test_a_second_signal_stops() -> None:
    with serving("--ctx", "60000") as (process, url):
        said: list[str] = []
        thread = stream(url, 50_000, said)
        until_it_runs(url)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0
        thread.join(10)


def test_https(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    files = ("--ssl-certfile", str(tmp_path / "cert.pem"), "--ssl-keyfile", str(tmp_path / "key.pem"))
    with serving("--ctx", "512", *files) as (_, url):
        assert url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        found = httpx.post(f"{url}/completion", json=WORDS | {"n_predict": 3}, verify=trusted)
        assert found.text.rstrip().endswith("[DONE]")
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            httpx.get(f"{url}/health")
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"{url.replace('https', 'http')}/health")


def test_keys_of_a_file_and_an_alias(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret\n")
    with serving("--ctx", "512", "--api-key-file", str(tmp_path / "keys"), "--alias", "small") as (_, url):
        assert httpx.get(f"{url}/v1/models").status_code == 401
        found = httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer secret"})
        assert found.json()["data"][0]["id"] == "small"


def test_how_long_a_long_prompt_takes_is_told() -> None:
    with serving("--ctx", "30000", "--log-level", "error") as (process, _):
        assert process.stderr is not None
        found = next(
            line
            for line in process.stderr
            if line.startswith("a prompt of 20,000 tokens takes at least about ")
        )
        assert 0.1 < float(found.split()[9].replace(",", "")) < 600


def refused(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pyllama_long", "serve", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return found.returncode, found.stderr.strip().splitlines()[-1]


def test_what_cannot_be_served_is_said_in_a_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, line = refused("--port", str(taken.getsockname()[1]))
        assert code == 1 and f"127.0.0.1:{taken.getsockname()[1]}: Address already in use; take" in line
    (tmp_path / "bad.gguf").write_bytes(b"no model")
    code, line = refused("-m", str(tmp_path / "bad.gguf"), "--port", "0")
    assert code == 1 and "bad.gguf" in line
    code, line = refused("--attention", "nonsense", "--port", "0")
    assert code == 2 and "nonsense" in line
    code, line = refused("--attention", "upstream", "--rope", "yarn", "--port", "0")
    assert code == 1 and line.startswith("pyllama-long: --attention 'upstream' cannot run")
    code, line = refused("--ssl-certfile", "x", "--port", "0")
    assert code == 2 and "ssl-keyfile" in line
    code, line = refused("--ssl-certfile", "x", "--ssl-keyfile", "y", "--port", "0")
    assert code == 1 and "x and y cannot be used as certificate and key: No such file" in line


def test_streams_longer_than_the_drain_end_with_an_error_event() -> None:
    with serving("--ctx", "60000", "--drain", "0.5") as (process, url):
        said: list[str] = []
        thread = stream(url, 50_000, said)
        until_it_runs(url)
        process.send_signal(signal.SIGTERM)
        thread.join(20)
        assert process.wait(20) == 0
        assert said[0].rstrip().endswith("data: [DONE]") and "shutting_down" in said[0]


def test_an_ipv6_wildcard_takes_ipv4_too() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    with listen("::", 0) as listening:
        socket.create_connection(("127.0.0.1", listening.getsockname()[1]), timeout=5).close()
