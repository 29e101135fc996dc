"""A backend of plain loops executes the planned work of every case without the CPU's kernels."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_void_p
from pathlib import Path

import numpy as np
import pytest
from cases import CASES, CHOOSING, Case
from op_graph import OpCase, known

from pyllama_long import _library, _native

ROOT = Path(__file__).resolve().parents[1]
COMPILER = os.environ.get("CC") or shutil.which("cc") or "gcc"


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """ggml_ext/stub, compiled against the library in use."""
    path = tmp_path_factory.mktemp("stub") / "libplong-stub.so"
    base = _library.find("ggml-base")
    assert base is not None
    includes = ["ggml_ext", "vendor/llama.cpp/tree/ggml/include"]
    command = [COMPILER, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    command += ["-DGGML_SHARED", *(f"-I{ROOT / folder}" for folder in includes)]
    command += [str(ROOT / "ggml_ext" / "stub" / "stub.c"), "-o", str(path), str(base), "-lm"]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(path))
    library.plong_stub_limits.restype = _native.CLimits
    library.plong_stub_limits.argtypes = [POINTER(_native.CShape), c_int]
    library.plong_stub_supports.restype, library.plong_stub_supports.argtypes = c_char_p, [c_void_p]
    library.plong_stub_scratch.restype, library.plong_stub_scratch.argtypes = c_size_t, [c_void_p]
    library.plong_stub_compute.restype, library.plong_stub_compute.argtypes = None, [c_void_p, c_char_p]
    library.plong_stub_choose.restype, library.plong_stub_choose.argtypes = None, [c_void_p]
    return library


@pytest.mark.skipif(sys.platform == "win32", reason="gcc's command line")
@pytest.mark.parametrize("case", CASES + CHOOSING, ids=lambda case: case.name)
def test_plain_loops_execute_the_work(stub: ctypes.CDLL, case: Case) -> None:
    def compute(_: int, out: int, choices: int | None) -> None:
        if choices is not None:
            stub.plong_stub_choose(choices)
        assert stub.plong_stub_supports(out) is None
        stub.plong_stub_compute(out, ctypes.create_string_buffer(stub.plong_stub_scratch(out)))

    op = OpCase(case)
    shape = op.shape()
    work = _native.Work(op.batch(), shape, stub.plong_stub_limits(shape, 1))
    got = op.computed(work, compute)
    if case in CHOOSING:
        assert op.chosen is not None and op.chosen.any()
        expected, allowed = op.expected(), 1e-4
    else:
        expected, allowed = known(case)
    assert np.abs(got - expected).max() <= allowed
