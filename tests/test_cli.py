"""The command line: what it prints, its exit codes, and one line for every error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ENOUGH, failed, program
from typer.testing import CliRunner

from pyllama_long import cli
from pyllama_long.cli.model_options import ModelOptions

COMMANDS = ("chat", "complete", "inspect", "plan", "demo")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str) -> None:
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert "Examples" in result.output and f"pyllama-long {command}" in result.output


def test_version_and_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pyllama-long ")
    assert cli.run([]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing"),
        (["chat", "--unknown"], "--unknown"),
        (["chat", "--ctx", "many"], "--ctx"),
        (["complete", "text", "--kv-type", "f8"], "known: f32, f16"),
        (["complete", "text", "--precision", "f8"], "known: auto, f32"),
        (["complete", "text", "-f", "file"], "not both"),
        (["complete", "text", "-m", "a.gguf", "--hf", "a/b"], "not both"),
        (["plan", "slash(64)"], "unknown part 'slash'; known: exact, sinks(n)"),
        (["plan", "exact", "--length", "0"], "--length"),
        (["inspect", "--rope", "spiral"], "unknown policy 'spiral'"),
        (["demo", "--facts", "0"], "--facts"),
        (
            ["complete", "text", "--ctx", "99999999999"],
            "'--ctx': 99999999999 is not from 0 to 2,147,483,647 tokens",
        ),
        (["complete", "text", "--threads", "513"], "'--threads': Input should be less than or equal to 512"),
        (["complete", "text", "--tail", "zzz"], "--tail must be the end of the prompt, which 'zzz' is not"),
        (
            ["demo", "--length", "1000000000000"],
            "'--length': 1000000000000 is not from 0 to 16,777,216 tokens",
        ),
        (["chat", "--ctx", "1.0001k"], "'--ctx': 1.0001k is not a whole number of tokens"),
        (["plan", "exact", "--length", "4x"], "4x is in times of a trained length, and there is no model"),
        (["demo", "--length", "5"], "--length 5 has no room for --facts 10: give at least --length "),
        (["demo", "--length", "600", "--facts", "69"], "--length 600 has no room for --facts 69"),
        (["chat", "--unknown"], "(see pyllama-long chat --help)"),
        (["inspect", "a.gguf", "-m", "b.gguf"], "not both"),
        (["complete", "text", "--temp", "inf"], "'--temp': inf is not a finite number"),
        (["complete", "text", "--repeat-penalty", "inf"], "'--repeat-penalty': inf is not a finite"),
        (["complete", "text", "--repeat-penalty", "0"], "'--repeat-penalty': 0 is not above 0"),
        (["complete", "text", "--lora-scale", "nan"], "'--lora-scale': nan is not a finite number"),
        (["eval", "needle", "--lora-scale", "2"], "--lora-scale needs --lora"),
        (["eval", "needle", "--lengths", ""], "'' is no length"),
        (["plan", "exact", "--head", "8"], "--head 8 is not one of --heads 8, which are 0 to 7"),
        (["plan", "skim", "--length", "64", "--tail", "65"], "--tail 65 is more than the 64 tokens"),
        *(
            (
                ["plan", "exact", "--work", "1", option, value],
                f"{option} belongs to the drawing, which --work",
            )
            for option, value in (("--png", "a.png"), ("--from", "0"), ("--width", "64"), ("--head", "0"))
        ),
        *(
            (["plan", "exact", option, "8"], f"{option} belongs to --work N")
            for option in ("--kv-heads", "--head-size", "--threads")
        ),
        (["serve", "--log-level", "loud"], "'--log-level': 'loud'; known: debug"),
        *(
            (["serve", "--cors-origin", value], f"'--cors-origin': {value!r} is no origin")
            for value in ("localhost:3000", "http://a.b/page", "")
        ),
        *(
            (["serve", "--allowed-host", value], f"'--allowed-host': {value!r} is no name")
            for value in ("http://name", "name:80", "")
        ),
        *(
            (["serve", option, value], f"'{option}': Input should be")
            for option in ("--cache-ram", "--cache-disk", "--drain", "--timeout", "--step-ms")
            for value in ("inf", "nan")
        ),
    ],
)
def test_wrong_usage_is_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in failed(capsys, arguments, 2)


def test_a_program_prints_no_traceback_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "random.gguf"
    path.write_bytes(os.urandom(4096))
    result = program("inspect", str(path))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"pyllama-long: {path} is not a GGUF file (it does not begin with GGUF)\n"
    debug = program("inspect", str(path), env={"PYLLAMA_DEBUG": "1"})
    assert debug.returncode == 1 and "Traceback" in debug.stderr


def test_unexpected_errors_are_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: ModelOptions) -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.delenv("PYLLAMA_DEBUG", raising=False)
    monkeypatch.setattr(ModelOptions, "info", broken)
    assert "RuntimeError: first second (PYLLAMA_DEBUG=1" in failed(capsys, ["inspect"], 1)
    monkeypatch.setenv("PYLLAMA_DEBUG", "1")
    with pytest.raises(RuntimeError):
        cli.run(["inspect"])


def test_what_is_said_of_keywords_is_said_of_options(capsys: pytest.CaptureFixture[str]) -> None:
    line = failed(capsys, ["complete", "text", "--ctx", "2000000000"], 1)
    assert "lower --ctx, or take --kv-type 'q8_0'" in line
    line = failed(capsys, ["complete", "text", "--attention", "upstream", "--rope", "yarn"], 1)
    assert line.startswith("pyllama-long: --attention 'upstream' cannot run") and "--rope 'native'" in line


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    raw, short = b"a\xff\xfe", ["--max-tokens", "2", "--json", *ENOUGH]
    asked = program("complete", os.fsdecode(raw), "--tail", os.fsdecode(b"\xfe"), *short)
    (tmp_path / "prompt").write_bytes(raw)
    read = program("complete", "-f", str(tmp_path / "prompt"), *short)
    assert (asked.returncode, asked.stderr) == (0, "")
    usage, text = (json.loads(asked.stdout)[key] for key in ("usage", "text"))
    assert (usage, text) == tuple(json.loads(read.stdout)[key] for key in ("usage", "text"))
    saved = tmp_path / "talk.json"
    command = [sys.executable, "-m", "pyllama_long", "chat", *ENOUGH, "--max-tokens", "2"]
    chat = subprocess.run(
        command, input=b"\xff\xfehi\n/save " + os.fsencode(saved), capture_output=True, timeout=300
    )
    assert (chat.returncode, chat.stderr) == (0, b"")
    assert json.loads(saved.read_text(encoding="utf-8"))[0]["content"] == "\ufffd\ufffdhi"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no sh to close a stream there")
@pytest.mark.parametrize(
    ("redirection", "arguments"),
    [
        (">&-", ["inspect"]),
        (">&-", ["complete", "text", "--max-tokens", "2", *ENOUGH]),
        ("<&-", ["complete"]),
        ("<&-", ["chat", *ENOUGH]),
        ("2>&-", ["inspect", "missing.gguf"]),
    ],
    ids=str,
)
def test_closed_streams_are_as_dev_null(redirection: str, arguments: list[str]) -> None:
    def run(how: str) -> tuple[int, bytes, bytes]:
        command = ["sh", "-c", f'exec "$@" {how}', "sh", sys.executable, "-m", "pyllama_long", *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
        return done.returncode, done.stdout, done.stderr

    assert run(redirection) == run(redirection.replace("&-", "/dev/null"))


def test_warnings_are_one_line_without_a_place() -> None:
    shown = program("complete", "text", "--ctx", "64", "--max-tokens", "500")
    assert shown.returncode == 0
    [line] = [line for line in shown.stderr.splitlines() if "warning" in line]
    assert line.startswith("pyllama-long: warning: --max-tokens 500 does not fit") and "--ctx" in line
    assert "sys:1" not in shown.stderr and "n_ctx" not in shown.stderr


def test_ctrl_c_during_imports_is_one_line() -> None:
    code = """if True:
        import sys

        class Pressed:
            def find_spec(self, name, *_):
                if name == "typer":
                    raise KeyboardInterrupt

        sys.meta_path.insert(0, Pressed())
        from pyllama_long.cli import main
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (130, "pyllama-long: stopped\n")


def test_ctrl_c_in_a_command_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(_self: ModelOptions) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelOptions, "info", pressed)
    assert failed(capsys, ["inspect"], 130) == "pyllama-long: stopped\n"
