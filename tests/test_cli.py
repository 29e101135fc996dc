"""The command line: what it prints, its exit codes, and one line for every error."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from pyllama_long import cli
from pyllama_long.cli import chat_input, common, hub
from pyllama_long.context_options import PRECISIONS

COMMANDS = ("chat", "complete", "inspect", "plan", "demo")
ENOUGH = ("--ctx", "1024", "--temp", "0")


def program(
    *arguments: str, stdin: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyllama_long", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        env={**os.environ, "PYTHONUTF8": "1", **(env or {})},
    )


def failed(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> str:
    """Runs a command that must fail, and returns its one line."""
    assert cli.run(arguments) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("pyllama-long: ") and printed.err.count("\n") == 1
    return printed.err


# ---- help and usage ----


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
        (["plan", "topk(64)"], "unknown part 'topk'; known: exact, sinks(n)"),
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
        (["complete", "text", "--lora-scale", "nan"], "'--lora-scale': nan is not a finite number"),
        (["eval", "needle", "--lora-scale", "2"], "--lora-scale needs --lora"),
        (["eval", "needle", "--lengths", ""], "'' is no length"),
        (["plan", "exact", "--head", "8"], "--head 8 is not one of --heads 8, which are 0 to 7"),
        (["plan", "skim", "--length", "64", "--tail", "65"], "--tail 65 is more than the 64 tokens"),
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


# ---- errors ----


@pytest.mark.parametrize("command", [["inspect"], ["complete", "text", "-m"], ["chat", "-m"]])
def test_bad_model_files(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str]) -> None:
    whole = (Path(common.__file__).parents[1] / "data" / "demo.gguf").read_bytes()
    files = {
        "empty.gguf": (b"", "is empty"),
        "random.gguf": (bytes(range(256)) * 40, "is not a GGUF file"),
        "cut.gguf": (whole[: len(whole) // 2], "is truncated"),
        "head.gguf": (whole[:5000], "is truncated"),
        "lying.gguf": (whole[:8] + b"\xff" * 7 + b"\x7f" + whole[16:], "announces"),
    }
    for name, (data, message) in files.items():
        (tmp_path / name).write_bytes(data)
        assert message in failed(capsys, [*command, str(tmp_path / name)], 1)
    assert "is a directory" in failed(capsys, [*command, str(tmp_path)], 1)
    assert "does not exist" in failed(capsys, [*command, str(tmp_path / "none.gguf")], 1)


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
    def broken(_self: common.ModelOptions) -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.delenv("PYLLAMA_DEBUG", raising=False)
    monkeypatch.setattr(common.ModelOptions, "info", broken)
    assert "RuntimeError: first second (PYLLAMA_DEBUG=1" in failed(capsys, ["inspect"], 1)
    monkeypatch.setenv("PYLLAMA_DEBUG", "1")
    with pytest.raises(RuntimeError):
        cli.run(["inspect"])


def test_files_that_cannot_be_read_or_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "cannot be read" in failed(capsys, ["complete", "-f", str(tmp_path / "none.txt")], 1)
    (tmp_path / "binary").write_bytes(b"a\0b")
    assert "not a text file" in failed(capsys, ["complete", "-f", str(tmp_path / "binary")], 1)
    (tmp_path / "blank").touch()
    assert "is empty" in failed(capsys, ["complete", "-f", str(tmp_path / "blank")], 1)
    png = str(tmp_path / "none" / "plan.png")
    assert "cannot be written" in failed(capsys, ["plan", "exact", "--length", "64", "--png", png], 1)
    assert "cannot be written" in failed(capsys, ["eval", "needle", "--plot", png], 1)
    for command in (["plan", "exact", "--png"], ["eval", "needle", "--plot"]):
        assert "writes PNG: a.txt does not end in .png" in failed(capsys, [*command, "a.txt"], 1)


def test_what_is_said_of_keywords_is_said_of_options(capsys: pytest.CaptureFixture[str]) -> None:
    line = failed(capsys, ["complete", "text", "--ctx", "2000000000"], 1)
    assert "lower --ctx, or take --kv-type 'q8_0'" in line
    line = failed(capsys, ["complete", "text", "--attention", "upstream", "--rope", "yarn"], 1)
    assert line.startswith("pyllama-long: --attention 'upstream' cannot run") and "--rope 'native'" in line


def test_text_that_powershell_writes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Größe".encode("utf-16"))
    assert common.read_text(tmp_path / "a.txt") == "Größe"


# ---- inspect and plan ----


def test_inspect_the_embedded_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["architecture"], report["n_train"]) == ("llama", 512)
    assert [row["n_ctx"] for row in report["choices"]] == [512, 2048, 8192, 51200]
    assert report["choices"][0]["rope"] == "native"
    assert report["choices"][3]["rope"] == "rerope(128)+logn"
    assert report["choices"][3]["kv_bytes"] == 51200 * report["kv_bytes_per_token"]["f16"]
    assert cli.run(["inspect", "--attention", "skim"]) == 0
    shown = capsys.readouterr().out
    assert "512 tokens" in shown and "prefill: sinks(4)+window(508) | tail: exact" in shown


def test_plan_as_json_and_drawing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    png = tmp_path / "plan.png"
    options = ["--length", "2048", "--png", str(png)]
    assert cli.run(["plan", "sinks(4)+window(256)", "--json", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["plan"] == "sinks(4)+window(256)"
    assert report["longest_path"] == 9  # sinks do not look back
    assert 0.22 < report["shares"]["2048"] < 0.26
    assert png.read_bytes().startswith(b"\x89PNG")
    assert cli.run(["plan", "window(256)", "--length", "2048"]) == 0
    shown = capsys.readouterr().out
    assert "█" in shown and "longest path at 2,048: 9 layers" in shown


# ---- complete ----


def test_complete_from_argument_file_and_stdin(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    prompt = "It was the best of times"
    (tmp_path / "prompt.txt").write_text(prompt)
    short = ["--max-tokens", "8", *ENOUGH]
    assert cli.run(["complete", prompt, *short]) == 0
    said = capsys.readouterr().out
    assert said.strip()
    assert cli.run(["complete", "-f", str(tmp_path / "prompt.txt"), *short]) == 0
    assert capsys.readouterr().out == said
    piped = program("complete", "--json", *short, stdin=prompt)
    report = json.loads(piped.stdout)
    assert report["text"] == said.removesuffix("\n")
    assert report["usage"]["completion_tokens"] <= 8 and report["finish_reason"] == "length"
    assert (report["plan"], report["share_of_keys"]) == ("exact", 1.0)


@pytest.mark.parametrize("prompt", ["hi", "<|im_start|>user\nHello<|im_end|>\n" * 3])
def test_complete_counts_as_a_completion_does(
    capsys: pytest.CaptureFixture[str], demo_model: str, prompt: str
) -> None:
    from pyllama_long import LongLlama

    llm = LongLlama(demo_model, n_ctx=1024)
    for most in (1, 7):
        assert cli.run(["complete", prompt, "--max-tokens", str(most), "--json", *ENOUGH]) == 0
        report = json.loads(capsys.readouterr().out)
        sampling = common.Sampling(max_tokens=most, temperature=0).arguments()
        answer = llm.create_completion(prompt, **sampling)
        assert report["usage"] == answer["usage"]
        assert report["text"] == answer["choices"][0]["text"]
    llm.close()


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


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precision_reaches_the_model(precision: str) -> None:
    llm = common.ModelOptions(precision=precision).open(512)
    assert llm.precision == precision
    llm.close()


def test_the_context_grows_with_the_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    long = "The grass is green. " * 200
    assert cli.run(["complete", long, "--max-tokens", "4", "--json", "--temp", "0"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["usage"]["prompt_tokens"] > 512 and report["context"] > report["usage"]["prompt_tokens"]
    assert report["rope"] == "rerope(128)+logn"
    assert "do not fit into the context of 512: shorten the text, or use a larger --ctx" in failed(
        capsys, ["complete", long, "--ctx", "512"], 1
    )


# ---- chat ----


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


# ---- what the commands share ----


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert common.clean("a\x1b[2Jb\r\x07\x9b1m\tc\nd") == "a[2Jb1m\tc\nd"


def test_the_rate_counts_new_tokens_only() -> None:
    prefill = common.Prefill(Console(file=io.StringIO()))
    with prefill.reading(512):
        for done in (2512, 3024, 3100):
            prefill(done, 3100)
    assert prefill.new == 1100


def test_choosing_a_file_of_the_hub() -> None:
    files = ["README.md", "m-Q8_0.gguf", "m-Q4_K_M.gguf", "mmproj-m.gguf"]
    assert hub.choose("a/m", "", files) == "m-Q4_K_M.gguf"
    assert hub.choose("a/m", "q8_0", files) == "m-Q8_0.gguf"
    with pytest.raises(common.CommandError, match="has no Q2_K; it has: m-Q8_0"):
        hub.choose("a/m", "Q2_K", files)
    with pytest.raises(common.CommandError, match=r"has no \.gguf file"):
        hub.choose("a/m", "", ["model.safetensors"])
    split = [f"m-0000{k}-of-00003.gguf" for k in (1, 2, 3)]
    assert hub.choose("a/m", "", split) == split[0]
    assert hub.parts(split[0]) == split
    with pytest.raises(common.CommandError, match="owner/name"):
        hub.download("not a repository")


# ---- chat ----


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
    with pytest.raises(common.CommandError, match="the quote ' has no end"):
        file_and_question("'a b.txt")


def test_chat_says_what_is_missing_and_what_was_cut(tmp_path: Path) -> None:
    whole = Path(common.__file__).parents[1] / "data" / "demo.gguf"
    path = tmp_path / "plain.gguf"
    path.write_bytes(whole.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_templatX"))
    chat = program("chat", "-m", str(path), "--max-tokens", "3", "--temp", "0", stdin="hello\n")
    assert "this file has no chat template" in chat.stdout
    assert "cut by --max-tokens 3" in chat.stdout
    assert "no chat template" not in program("chat", "--max-tokens", "3", stdin="hello\n").stdout


def test_warnings_are_one_line_without_a_place() -> None:
    shown = program("complete", "text", "--ctx", "64", "--max-tokens", "500")
    assert shown.returncode == 0
    [line] = [line for line in shown.stderr.splitlines() if "warning" in line]
    assert line.startswith("pyllama-long: warning: --max-tokens 500 does not fit") and "--ctx" in line
    assert "sys:1" not in shown.stderr and "n_ctx" not in shown.stderr


def test_lengths_as_people_write_them(capsys: pytest.CaptureFixture[str]) -> None:
    for text, tokens in (("4k", 4096), ("4K", 4096), ("8x", 4096), ("4096", 4096), ("0.5k", 512)):
        assert cli.run(["inspect", "--ctx", text, "--json"]) == 0
        assert [row["n_ctx"] for row in json.loads(capsys.readouterr().out)["choices"]] == [tokens]
