"""The instruction sets of the CPU backend."""

from __future__ import annotations

from collections.abc import Callable

from pyllama_long.context_options import PRECISIONS
from pyllama_long.libllama.library import lib


def text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode(errors="replace")


def listed(name_of: Callable[[int], bytes | None], usable: Callable[[int], bool]) -> dict[str, bool]:
    """What a library has, by number: names, best first, and whether this processor can run each."""
    found: dict[str, bool] = {}
    while (name := text(name_of(len(found)))) is not None:
        found[name] = bool(usable(len(found)))
    return found


def isas() -> dict[str, bool]:
    """The instruction sets compiled in, best first, and whether this processor can run each."""
    return listed(lib.plong_cpu_isa_name, lib.plong_cpu_isa_usable)


def isa(precision: str = "auto") -> str:
    """The instruction set in use at a precision; for "f32", one that multiplies bf16 is replaced by another."""
    return text(lib.plong_cpu_isa(PRECISIONS.index(precision))) or ""


def force_isa(name: str | None) -> None:
    """Forces an instruction set; None: the best usable one. Raises ValueError when it is unknown or not
    usable here."""
    if not lib.plong_cpu_isa_force((name or "").encode()):
        usable = ", ".join(n for n, ok in isas().items() if ok)
        raise ValueError(f"instruction set {name!r} cannot be used here; usable: {usable}")


def isa_tiles(name: str) -> int:
    """Query tiles that an instruction set has computed in this process."""
    return int(lib.plong_cpu_isa_tiles(list(isas()).index(name)))
