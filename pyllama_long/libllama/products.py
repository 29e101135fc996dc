"""The code that multiplies with quantized weights on the CPU."""

from __future__ import annotations

from pyllama_long.libllama.isas import listed, text
from pyllama_long.libllama.library import lib


def products() -> dict[str, bool]:
    """The codes compiled in, one for an instruction set, best first, and whether this processor can run each."""
    return listed(lib.plong_product_name, lib.plong_product_usable)


def product() -> str:
    """The one in use; "upstream": llama.cpp's own."""
    return text(lib.plong_product()) or ""


def force_product(name: str | None) -> None:
    """Forces one, or "upstream", for models that are loaded from now on; None: the best usable one. Raises ValueError
    when it is unknown or not usable here."""
    if not lib.plong_product_force((name or "").encode()):
        usable = ", ".join([*(n for n, ok in products().items() if ok), "upstream"])
        raise ValueError(f"products {name!r} cannot be used here; usable: {usable}")


def product_tiles(name: str) -> int:
    """Tiles of weights that a code has computed in this process."""
    return int(lib.plong_product_tiles(list(products()).index(name)))


def product_takes(ggml_type: int) -> bool:
    """Whether products with weights of a type, of ggml's enum, are ours now."""
    return bool(lib.plong_product_takes_type(ggml_type))
