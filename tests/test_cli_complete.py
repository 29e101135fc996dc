"""`complete`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import ENOUGH, failed, program

from pyllama_long import cli
from pyllama_long.cli.sampling import Sampling


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
        sampling = Sampling(max_tokens=most, temperature=0).arguments()
        answer = llm.create_completion(prompt, **sampling)
        assert report["usage"] == answer["usage"]
        assert report["text"] == answer["choices"][0]["text"]
    llm.close()


def test_the_context_grows_with_the_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    long = "The grass is green. " * 200
    most = 2**31 - 1
    refused = failed(capsys, ["complete", long, "--max-tokens", str(most)], 1)
    assert f"an answer of --max-tokens {most} are more than any context holds" in refused
    assert cli.run(["complete", long, "--max-tokens", "4", "--json", "--temp", "0"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["usage"]["prompt_tokens"] > 512 and report["context"] > report["usage"]["prompt_tokens"]
    assert report["rope"] == "rerope(128)+logn"
    assert "do not fit into the context of 512: shorten the text, or use a larger --ctx" in failed(
        capsys, ["complete", long, "--ctx", "512"], 1
    )
