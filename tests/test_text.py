"""Text as it comes: whole characters, stop strings, and nothing twice."""

from __future__ import annotations

import pytest

from pyllama_long.text import Text


def text(pieces: list[bytes], *stop: str) -> Text:
    return Text(lambda tokens, i: pieces[tokens[i]], [s.encode() for s in stop])


def run(pieces: list[bytes], *stop: str) -> tuple[list[str], str]:
    """Pushes every piece until a stop string; returns what streaming gives, and the whole text."""
    t = text(pieces, *stop)
    out: list[str] = []
    for i in range(len(pieces)):
        if t.push(i):
            break
        out += [piece for _, _, piece in t.take()]
    out += [piece for _, _, piece in t.take(last=True)]
    return out, str(t)


def test_plain_tokens_come_at_once() -> None:
    assert run([b"one", b" two", b""]) == (["one", " two", ""], "one two")


@pytest.mark.parametrize("char", ["é", "語", "🦙"])
def test_characters_are_never_split(char: str) -> None:
    raw = char.encode()
    pieces = [b"a", *(raw[i : i + 1] for i in range(len(raw))), b"b"]
    assert run(pieces) == (["a", char, "b"], f"a{char}b")


def test_a_character_that_never_ends_is_dropped() -> None:
    assert run([b"a", "語".encode()[:2]]) == (["a", ""], "a")


def test_bytes_that_are_no_text_do_not_hold_the_stream_up() -> None:
    out, whole = run([b"a", b"\xff", b"b", b"c", b"defgh", b"i"])
    assert "".join(out) == whole == "abcdefghi"
    assert len(out) > 2


def test_stop_string_inside_a_token() -> None:
    assert run([b"one", b" two STOP three"], "STOP") == (["one", " two "], "one two ")


def test_stop_string_across_tokens() -> None:
    out, whole = run([b"one", b" S", b"TO", b"P", b" two"], "STOP")
    assert "".join(out) == whole == "one "
    assert not any("S" in piece for piece in out)


def test_a_stop_string_that_does_not_come_is_given_back() -> None:
    out, whole = run([b"one S", b"TO", b"RE"], "STOP")
    assert "".join(out) == whole == "one STORE"


def test_the_earliest_stop_string_counts() -> None:
    assert run([b"a b c d"], "d", "b")[1] == "a "


def test_an_empty_stop_string_stops_nothing() -> None:
    assert run([b"a", b"b"], "")[1] == "ab"


def test_stop_string_of_several_bytes_per_character() -> None:
    raw = "語語".encode()
    out, whole = run([b"a", raw[:4], raw[4:], b"b"], "語語")
    assert "".join(out) == whole == "a"


def test_every_token_is_read_once() -> None:
    calls = 0

    def piece(tokens: list[int], i: int) -> bytes:
        nonlocal calls
        calls += 1
        return b"x"

    t = Text(piece, [b"yy", b"zzz"])
    for i in range(1000):
        t.push(i)
        t.take()
    assert calls == 1000
    assert str(t) == "x" * 1000
