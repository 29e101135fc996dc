"""`chat`: a conversation through a pipe."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import ENOUGH, program

from pyllama_long import cli
from pyllama_long.cli import chat_input
from pyllama_long.cli.command_error import CommandError


def test_a_piped_chat(tmp_path: Path) -> None:
    (tmp_path / "facts.txt").write_text(
        "The grass is green. The pass key for apple is 31415. The sky is blue.\n"
    )
    saved = tmp_path / "talk.json"
    lines = [
        f"/read {tmp_path / 'facts.txt'}",
        "One question. \\",
        "What is the pass key for apple?",
        "/stats",
        "/regen",
        f"/save {saved}",
        "/clear",
        "/regen",
        "/unknown",
        f"/read {tmp_path / 'none'}",
        "/help",
        "/quit",
        "never read",
    ]
    result = program("chat", *ENOUGH, "--max-tokens", "24", stdin="\n".join(lines))
    assert (result.returncode, result.stderr) == (0, "")
    roles = [message["role"] for message in json.loads(saved.read_text())]
    assert roles == ["user", "assistant"]
    assert json.loads(saved.read_text())[0]["content"].endswith(
        "One question. \nWhat is the pass key for apple?"
    )
    for shown in ("RoPE: rerope(128)+logn", "no answer yet", "unknown command /unknown", "cannot be read"):
        assert shown in result.stdout
    assert result.stdout.count("31415") == 2  # the answer, and the one after /regen
    assert "never read" not in result.stdout


def test_a_prompt_that_does_not_fit_leaves_the_chat_usable() -> None:
    long = "word " * 900
    result = program("chat", "--ctx", "512", "--max-tokens", "8", "--temp", "0", stdin=f"{long}\nHello\n")
    assert result.returncode == 0
    assert "more than the context of 512" in result.stdout
    assert result.stdout.rstrip().splitlines()[-1] != "word"


def test_a_file_that_never_fits_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("word " * 900)
    lines = f"/read {tmp_path}/long.txt\nHello\n"
    result = program("chat", "--ctx", "512", "--max-tokens", "8", "--temp", "0", stdin=lines)
    assert result.stdout.count("more than the context of 512") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process there")
def test_ctrl_c_stops_the_answer_and_not_the_program() -> None:
    arguments = ["chat", "--ctx", "40000", "--temp", "1", "--min-p", "0", "--max-tokens", "30000"]
    chat = subprocess.Popen(
        [sys.executable, "-u", "-m", "pyllama_long", *arguments, "--seed", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert chat.stdin and chat.stdout and chat.stderr
    try:
        chat.stdin.write(b"word " * 20000 + b"\n/stats\n/quit\n")
        chat.stdin.flush()
        chat.stdout.readline()  # the greeting: the model is loaded
        time.sleep(1.0)
        chat.send_signal(signal.SIGINT)
        out, err = chat.communicate(timeout=120)
    finally:
        chat.kill()
    assert chat.returncode == 0, err
    assert b"stopped" in out and b"attention: exact" in out


def test_piped_lines_that_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["one\\\n", "two\n", "three"])
    monkeypatch.setattr(sys.stdin, "readline", lambda: next(lines, ""))
    piped = chat_input.PipedInput()
    assert piped.read() == "one\ntwo"
    assert piped.read() == "three"
    with pytest.raises(EOFError):
        piped.read()


def test_read_takes_names_and_questions_as_people_write_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyllama_long.cli.chat import file_and_question

    monkeypatch.chdir(tmp_path)
    Path("two words.txt").write_text("x")
    for line, path, question in (
        ("a.txt", "a.txt", ""),
        ("a.txt what's in it?", "a.txt", "what's in it?"),
        ('a.txt say "hello" and \'bye', "a.txt", 'say "hello" and \'bye'),
        ("'a b.txt' what's in it?", "a b.txt", "what's in it?"),
        ('"a b.txt"', "a b.txt", ""),
        ("a\\ b.txt why", "a b.txt", "why"),
        ("two words.txt", "two words.txt", ""),
        ("two words.txt what's   there", "two words.txt", "what's   there"),
    ):
        assert file_and_question(line) == (Path(path), question), line
    with pytest.raises(CommandError, match="the quote ' has no end"):
        file_and_question("'a b.txt")


def test_chat_says_what_is_missing_and_what_was_cut(tmp_path: Path) -> None:
    whole = Path(cli.__file__).parents[1] / "data" / "demo.gguf"
    path = tmp_path / "plain.gguf"
    path.write_bytes(whole.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_templatX"))
    chat = program("chat", "-m", str(path), "--max-tokens", "3", "--temp", "0", stdin="hello\n")
    assert "this file has no chat template" in chat.stdout
    assert "cut by --max-tokens 3" in chat.stdout
    assert "no chat template" not in program("chat", "--max-tokens", "3", stdin="hello\n").stdout
