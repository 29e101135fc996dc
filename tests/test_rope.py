"""RoPE policies: text, defaults, errors, and what `auto` takes."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama_long.rope import RopeError, RopePolicy, choose_rope


@st.composite
def policies(draw: st.DrawFn) -> RopePolicy:
    values: dict[str, object] = {"n_train": draw(st.integers(2, 10**6)), "logn": draw(st.booleans())}
    freq = draw(st.sampled_from(("native", "linear", "ntk", "yarn", "llama3", "longrope")))
    factor = 1.0 if freq == "native" else draw(st.floats(1.0, 1e6))
    if freq == "yarn":
        values |= {
            "beta_fast": draw(st.sampled_from((32.0, 16.5))),
            "beta_slow": draw(st.sampled_from((1.0, 0.3))),
        }
    if freq == "llama3":
        values |= {
            "low_freq": draw(st.sampled_from((1.0, 0.5))),
            "high_freq": draw(st.sampled_from((4.0, 7.25))),
        }
    if freq == "longrope":
        values["factors"] = tuple(draw(st.lists(st.floats(0.5, 100.0), max_size=4)))
    if freq in ("ntk", "yarn") and draw(st.booleans()):
        return RopePolicy(freq=freq, dynamic=True, **values)  # type: ignore[arg-type]
    name = draw(st.sampled_from(("absolute", "dca", "self-extend", "rerope")))
    chunk, local = draw(st.integers(1, 9999)), draw(st.integers(1, 9999))
    if name == "absolute":
        chunk = local = 0
    elif name == "rerope":
        local = 0
    elif name == "dca":
        chunk += 1
        local %= chunk
    return RopePolicy(freq=freq, factor=factor, map=name, chunk=chunk, local=local, **values)  # type: ignore[arg-type]


@given(policies())
def test_text_reads_back_as_the_same_policy(policy: RopePolicy) -> None:
    assert RopePolicy.parse(str(policy), n_train=policy.n_train) == policy
    assert policy.explain()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("native", "native"),
        ("logn", "native+logn"),
        ("linear", "linear(8)"),
        ("ntk(2.5)", "ntk(2.5)"),
        ("yarn", "yarn(8)"),
        ("yarn(4, beta_fast=16)", "yarn(4, beta_fast=16)"),
        ("llama3(8,high_freq=6)", "llama3(8, high_freq=6)"),
        ("longrope(4, factors=1/1.5/2)", "longrope(4, factors=1/1.5/2)"),
        ("dca", "dca(384, 64)"),
        ("dca(100,20)", "dca(100, 20)"),
        ("self-extend", "self-extend(16, 128)"),
        ("rerope", "rerope(256)"),
        (" logn + yarn(4)+ dca ", "dca(384, 64)+yarn(4)+logn"),
        ("dca+native", "dca(384, 64)"),
        ("dynamic-ntk", "dynamic-ntk"),
        ("dynamic-yarn(beta_fast=16)+logn", "dynamic-yarn(beta_fast=16)+logn"),
        ("auto", "rerope(256)+logn"),
    ],
)
def test_parse_with_lengths(text: str, shown: str) -> None:
    assert str(RopePolicy.parse(text, n_train=512, n_ctx=4096)) == shown


def test_a_context_below_the_trained_length_scales_nothing() -> None:
    assert RopePolicy.parse("yarn", n_train=512, n_ctx=100).factor == 1.0
    assert str(RopePolicy.parse("self-extend", n_train=512, n_ctx=100)) == "self-extend(1, 128)"
    assert str(RopePolicy.parse("auto", n_train=512, n_ctx=512)) == "native"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "topk",
            "unknown policy 'topk'; known: native, linear, ntk, yarn, llama3, longrope, dynamic-ntk, ",
        ),
        ("dynamic-yarn(4)", "dynamic-yarn: unknown '4'; known: beta_fast=, beta_slow="),
        ("dynamic-ntk+dca", "dynamic-ntk and dca exclude each other"),
        ("dynamic-yarn+yarn(2)", "a frequency rule is given twice"),
        ("", "cannot read ''"),
        ("yarn(4", "cannot read 'yarn(4'"),
        ("yarn(x)", "yarn: 'x' is not a number"),
        ("yarn(nan)", "yarn: 'nan' is not a number"),
        ("yarn(0.5)", "yarn: the factor is 0.5, it must be 1 or more"),
        ("yarn(4, 3)", "yarn: unknown '3'; known: the factor, beta_fast=, beta_slow="),
        ("linear(4, beta_fast=3)", "linear: unknown 'beta_fast'; known: the factor"),
        ("yarn(4, beta_fast=1/2)", "beta_fast='1/2' is not one number"),
        ("yarn(4, beta_fast=0.5)", "beta_slow 1.0 and beta_fast 0.5 must ascend"),
        ("llama3(4, low_freq=5)", "low_freq 5.0 and high_freq 4.0 must ascend"),
        ("longrope(4, factors=1/0)", "longrope: factors must be positive"),
        ("native(2)", "native takes no values"),
        ("dca+logn(2)", "logn takes no values"),
        ("auto+logn", "auto stands alone"),
        ("yarn(2)+ntk(2)", "a frequency rule is given twice"),
        ("dca+rerope", "a position map is given twice"),
        ("logn+logn", "logn is given twice"),
        ("dca(8)", "dca takes (chunk, local) in tokens, or nothing"),
        ("dca(8, 8)", "dca: local 8 is not from 0 to below its chunk 8"),
        ("rerope(0)", "rerope: window: '0' is not a whole number from 1"),
        ("self-extend(group=4)", "self-extend takes (group, window) in tokens, or nothing"),
    ],
)
def test_errors_are_one_line_and_name_the_piece(text: str, message: str) -> None:
    with pytest.raises(RopeError) as caught:
        RopePolicy.parse(text, n_train=512, n_ctx=4096)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linear", "linear needs a factor: write linear(4), or give n_ctx and n_train"),
        ("yarn(4)", "yarn needs the trained length"),
        ("longrope(4)", "longrope needs the trained length"),
        ("logn", "logn needs the trained length"),
        ("dca", "dca needs (chunk, local): write them, or give n_train"),
        ("self-extend", "self-extend needs (group, window): write them, or give n_train and n_ctx"),
        ("dynamic-yarn", "dynamic-yarn needs the trained length: give n_train, 2 or more"),
        ("auto", "auto needs the trained length and the context length"),
    ],
)
def test_what_needs_lengths_says_so(text: str, message: str) -> None:
    with pytest.raises(RopeError) as caught:
        RopePolicy.parse(text)
    assert message.replace("n_ctx and n_train", "n_train and n_ctx") in str(caught.value)


@pytest.mark.parametrize(
    "text", ["native", "linear(4)", "ntk(4)", "rerope(64)", "dca(64, 8)", "self-extend(4, 9)"]
)
def test_what_needs_no_lengths_does_without(text: str) -> None:
    assert RopePolicy.parse(text).n_train == 0


@pytest.mark.parametrize(
    "values",
    [
        {"freq": "wave"},
        {"map": "spiral"},
        {"factor": 2.0},
        {"freq": "ntk", "factor": float("nan")},
        {"beta_fast": 8.0},
        {"freq": "yarn", "factor": 2.0, "n_train": 9, "factors": (1.0,)},
        {"freq": "longrope", "factor": 2.0, "n_train": 9, "factors": (1.0,) * 257},
        {"chunk": 3},
        {"map": "rerope", "chunk": 3, "local": 1},
        {"map": "self-extend", "chunk": 3},
        {"n_train": -1},
        {"n_train": 9, "dynamic": True},
        {"freq": "linear", "n_train": 9, "dynamic": True},
        {"freq": "yarn", "factor": 2.0, "n_train": 9, "dynamic": True},
    ],
)
def test_values_built_by_hand_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(RopeError):
        RopePolicy(**values)


def test_the_factor_follows_the_length_in_steps_of_two() -> None:
    policy = RopePolicy.parse("dynamic-yarn", n_train=512)
    lengths = (1, 512, 513, 1024, 1025, 4096, 5000, 9000)
    assert [policy.factor_for(n, 9000) for n in lengths] == [1, 1, 2, 2, 4, 8, 16, 9000 / 512]
    assert policy.factor_for(400, 100) == 1.0
    assert RopePolicy.parse("yarn(3)", n_train=512).factor_for(9000, 9000) == 3.0


def test_auto_is_native_dynamic_yarn_and_rerope_by_length() -> None:
    policy, why = choose_rope("auto", 512, 512, None)
    assert (str(policy), why) == ("native", "auto: 512 tokens are within the trained length 512")
    policy, why = choose_rope("auto", 512, 2048, None)
    assert (str(policy), policy.factor_for(500, 2048)) == ("dynamic-yarn", 1.0)
    assert why.endswith("YaRN's factor follows each text, and a short one is not scaled")
    assert str(choose_rope("auto", 512, 2049, None)[0]) == "rerope(256)+logn"
    policy, why = choose_rope("auto", 512, 51200, None)
    assert str(policy) == "rerope(256)+logn"
    assert "51200 tokens are beyond the trained length 512" in why
    policy, why = choose_rope("native", 512, 51200, None)
    assert str(policy) == "native"
    assert why == "asked for; the model knows only 512 positions"
    assert choose_rope("yarn", 512, 2048, None)[1] == "asked for"


def test_a_gguf_may_name_the_policy_beyond_its_length() -> None:
    policy, why = choose_rope("auto", 512, 2048, None, "rerope(256)+logn")
    assert str(policy) == "rerope(256)+logn"
    assert why.endswith("beyond the trained length 512; the GGUF names this policy")
    assert str(choose_rope("auto", 512, 512, None, "rerope(256)+logn")[0]) == "native"
    assert choose_rope("auto", 512, 9000, None, "native")[1].endswith("the GGUF names this policy")
    assert str(choose_rope("yarn(4)", 512, 2048, None, "native")[0]) == "yarn(4)"
    with pytest.raises(RopeError, match="unknown policy 'spiral'"):
        choose_rope("auto", 512, 2048, None, "spiral")


def test_a_gguf_that_scales_itself_is_not_scaled_twice() -> None:
    policy, why = choose_rope("auto", 131072, 131072, "yarn")
    assert str(policy) == "native"
    assert "GGUF's own yarn" in why
    assert str(choose_rope("auto", 131072, 500000, "llama3")[0]) == "rerope(65536)+logn"
    with pytest.raises(RopeError, match="dynamic-yarn would scale twice"):
        choose_rope("dynamic-yarn", 131072, 500000, "llama3")
    assert str(choose_rope("dca", 131072, 500000, "llama3")[0]) == "dca(98304, 16384)"
    assert str(choose_rope("yarn(4)", 4096, 16384, "none")[0]) == "yarn(4)"
    with pytest.raises(
        RopeError, match=r"yarn\(4\) would scale twice: the GGUF carries longrope to its 131072"
    ):
        choose_rope("yarn(4)", 131072, 500000, "longrope")


def test_auto_is_native_where_no_query_reaches_beyond_the_trained_length() -> None:
    policy, why = choose_rope("auto", 512, 51200, None, reach=512)
    assert str(policy) == "native" and why.startswith("auto: no query reads further than 512 tokens back")
    assert str(choose_rope("auto", 512, 51200, None, reach=513)[0]) == "rerope(256)+logn"
    assert choose_rope("native", 512, 51200, None, reach=512)[1] == "asked for"
    assert str(choose_rope("auto", 512, 51200, None, "rerope(99)", reach=512)[0]) == "rerope(99)"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-45, 1e-320, 3.5e38, 1e300])
def test_numbers_that_cannot_be_are_refused_before_c_sees_them(value: float) -> None:
    for values in (
        {"freq": "linear", "factor": value},
        {"freq": "yarn", "factor": 2.0, "beta_fast": value},
        {"freq": "yarn", "factor": 2.0, "beta_slow": value},
        {"freq": "llama3", "factor": 2.0, "low_freq": value},
        {"freq": "llama3", "factor": 2.0, "high_freq": value},
        {"freq": "longrope", "factor": 2.0, "factors": (1.0, value)},
    ):
        with pytest.raises(RopeError):
            RopePolicy(n_train=64, **values)  # type: ignore[arg-type]
