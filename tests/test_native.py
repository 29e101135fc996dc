"""The ctypes layer: sizes, conversions, and loading the right library."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference

from pyllama_long import AttentionPlan, RopePolicy, _library, _native
from pyllama_long._native import llama_cpp


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a new process, without what this one has loaded."""
    clean = {k: v for k, v in os.environ.items() if k not in ("LLAMA_CPP_LIB_PATH", "PYLLAMA_LONG_LIB")}
    root = str(Path(_library.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [clean.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", code], env={**clean, "PYTHONPATH": path, **env}, capture_output=True, text=True
    )


def test_upstream_structs_are_unchanged() -> None:
    assert ctypes.sizeof(llama_cpp.llama_context_params) == 160
    assert ctypes.sizeof(llama_cpp.llama_model_params) == 80


def test_struct_sizes() -> None:
    assert ctypes.sizeof(_native.CPhase) == 4 * (7 + 2 * 16 + 13)
    assert ctypes.sizeof(_native.CPlan) == 2 * ctypes.sizeof(_native.CPhase) + 16
    assert ctypes.sizeof(_native.CRope) == 4 * (13 + 256)
    assert ctypes.sizeof(_native.CConfig) == 12 + ctypes.sizeof(_native.CPlan) + ctypes.sizeof(_native.CRope)
    assert ctypes.sizeof(_native.CStats) == 40


def test_llama_cpp_uses_our_library() -> None:
    assert Path(llama_cpp.llama_cpp._lib._name).parent.samefile(_library.folder())


def test_plan_is_converted() -> None:
    plan = AttentionPlan.parse(
        "prefill: sinks(4)+dilated(segments=64/256, rates=1/4, weight=stride, align=query) | tail: exact;"
        " dense_below=32, dense_layers=2"
    )
    c = _native.c_plan(plan)
    prefill, tail = c.phase
    assert (prefill.sinks, prefill.window, prefill.n_branches) == (4, 0, 2)
    assert (list(prefill.segment)[:2], list(prefill.rate)[:2]) == ([64, 256], [1, 4])
    assert (prefill.weight, prefill.align, prefill.dense_below) == (1, 1, 32)
    assert (tail.window, tail.n_branches, c.dense_layers) == (2**31 - 1, 0, 2)
    assert _native.lib.plong_plan_check(_native.c_plan(plan)) is None


def test_rope_is_converted() -> None:
    rope = RopePolicy.parse("dca(384, 64)+yarn(4, beta_fast=16)+logn", n_train=512)
    c = _native.c_rope(rope)
    assert (c.freq, c.map, c.chunk, c.local, c.logn, c.n_train) == (3, 1, 384, 64, 1, 512)
    assert (c.factor, c.beta_fast, c.beta_slow, c.low_freq, c.high_freq) == (4.0, 16.0, 1.0, 1.0, 4.0)
    assert _native.lib.plong_rope_check(c) is None
    long = RopePolicy.parse("longrope(4, factors=1/2/3)", n_train=512)
    assert list(_native.c_rope(long).factors)[:4] == [1.0, 2.0, 3.0, 0.0]


def test_plan_functions() -> None:
    phase = AttentionPlan.parse("sinks(2)+window(3)").tail
    pos, log_w = _native.phase_keys(phase, 10, 0)
    assert pos.tolist() == [0, 1, 8, 9, 10]
    assert not log_w.any()
    assert _native.phase_count(phase, 10, 0) == 5


@pytest.mark.parametrize(("n_head", "n_head_kv"), [(4, 4), (7, 1), (6, 2), (32, 8)])
def test_head_numbers(n_head: int, n_head_kv: int) -> None:
    numbers = [_native.head_number(h, n_head, n_head_kv) for h in range(n_head)]
    assert numbers == [reference.number(h, n_head, n_head // n_head_kv) for h in range(n_head)]
    assert sorted(numbers) == list(range(n_head))
    group = numbers[: n_head // n_head_kv]
    assert {number % n_head_kv for number in group} == {0}, "heads of a kv head have different offsets"


def test_rope_functions() -> None:
    rope = RopePolicy.parse("rerope(256)+logn", n_train=512)
    f, magnitude = _native.rope_freqs(rope, 64, 10000.0)
    assert np.allclose(f, 10000.0 ** (-np.arange(32) / 32))
    assert magnitude == 1.0
    assert _native.rope_distance(rope, 5000, 10) == 256
    assert _native.rope_stored(rope, 77) in (0, 77)
    assert _native.rope_logn(rope, 511) == 1.0
    angles = _native.rope_angles(f, np.array([0, 100_000]))
    assert angles.shape == (2, 32, 2)
    assert np.allclose(angles[1, 0], [np.cos(100_000), np.sin(100_000)], atol=1e-6)


def test_isa_can_be_forced() -> None:
    try:
        for name, usable in _native.isas().items():
            if usable:
                _native.force_isa(name)
                assert _native.isa() == name
                assert _native.isa_tiles(name) >= 0
        with pytest.raises(ValueError, match="usable: "):
            _native.force_isa("mmx")
    finally:
        _native.force_isa(None)


def test_plain_modules_need_no_library(tmp_path: Path) -> None:
    code = "import pyllama_long.plan, pyllama_long.rope, sys; assert 'llama_cpp' not in sys.modules"
    assert run(code, PYLLAMA_LONG_LIB=str(tmp_path)).returncode == 0


def test_missing_library_is_a_clear_error(tmp_path: Path) -> None:
    found = run("from pyllama_long import LongLlama", PYLLAMA_LONG_LIB=str(tmp_path))
    assert f"ImportError: no libllama in {tmp_path}" in found.stderr


def test_any_import_order_after_our_package_works() -> None:
    found = run("import pyllama_long, llama_cpp; from pyllama_long import LongLlama; print('ok')")
    assert found.stdout == "ok\n", found.stderr


def test_llama_cpp_with_the_same_library_may_come_first() -> None:
    code = "import llama_cpp; from pyllama_long import LongLlama; print('ok')"
    found = run(code, LLAMA_CPP_LIB_PATH=str(_library.folder()))
    assert found.stdout == "ok\n", found.stderr


def test_llama_cpp_with_another_library_is_a_clear_error(tmp_path: Path) -> None:
    fake = "import sys, types\n" + "".join(
        f"sys.modules[{name!r}] = types.ModuleType({name!r})\n"
        for name in ("llama_cpp", "llama_cpp.llama_cpp")
    )
    other = f"sys.modules['llama_cpp.llama_cpp']._lib = types.SimpleNamespace(_name={str(tmp_path)!r})\n"
    found = run(fake + other + "from pyllama_long import LongLlama")
    assert "import pyllama_long first, then llama_cpp" in found.stderr
