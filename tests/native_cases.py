"""Writes cases of the op to files for tests/native/run_cases: `python tests/native_cases.py FOLDER [NAME-PREFIX ...]`.

Each file: a header, then q, k, v, batch, table, sinks and the float64 reference, as run_cases.c reads them.
"""

from __future__ import annotations

import argparse
import ctypes
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
from cases import CASES, CHOOSING, Array, Case
from op_graph import GGML_TYPES, OpCase

from pyllama_long import _native

HEADER = "13i 3f5i 2f"  # struct header of run_cases.c


def limit(op: OpCase, expected: Array, precision: str) -> float:
    """Twice the largest error of the naive computation."""
    return 2 * float(np.abs(op.expected(precision) - expected).max()) + 2e-6


def write(case: Case, path: Path) -> None:
    op = OpCase(case)
    other = OpCase(replace(case, name=case.name + "#0"))
    if (
        case in CHOOSING
    ):  # the reference reads the keys that the op chooses, in every instruction set the same
        op.run()
        other.run()
    expected = op.expected()
    bf16 = max(limit(op, expected, "bf16"), limit(other, other.expected(), "bf16"))
    allowed = (limit(op, expected, "f32"), bf16)
    batch, table = op.batch(), op.table()
    kinds = GGML_TYPES[case.kv_type], GGML_TYPES[case.type_v]
    sizes = (case.d_k, case.d_v, case.n_head, case.n_head_kv, len(op.q), *kinds, op.n_kv, op.k.shape[0])
    params = op.params()
    numbers = [getattr(params, name) for name, _ in params._fields_]
    counts = (len(batch), 0 if table is None else len(table), 0 if op.sinks is None else len(op.sinks))
    head = struct.pack(HEADER, *sizes, *counts, case.v_in_k, *numbers, *allowed)
    parts = [head, op.q.tobytes(), op.k_bytes, op.v_bytes, batch.tobytes()]
    parts += [values.tobytes() for values in (table, op.sinks) if values is not None]
    path.write_bytes(b"".join([*parts, expected.astype(np.float64).tobytes()]))


def main(folder: Path, prefixes: list[str]) -> None:
    assert struct.calcsize(HEADER) == 60 + ctypes.sizeof(_native.CAttnParams)
    folder.mkdir(parents=True, exist_ok=True)
    for i, case in enumerate([*CASES, *CHOOSING]):
        if not prefixes or case.name.startswith(tuple(prefixes)):
            write(case, folder / f"{i:03d}.case")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Writes cases of the op to files for tests/native/run_cases."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("prefixes", nargs="*", metavar="NAME-PREFIX", help="of the cases to write (all)")
    options = parser.parse_args()
    main(options.folder, options.prefixes)
