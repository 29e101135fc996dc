"""No circles: what a module imports, also for its types alone and inside functions, never leads back to it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyllama_long

ROOT = Path(pyllama_long.__file__).parent
PACKAGE = ROOT.name


def modules() -> dict[str, Path]:
    """Names and files of the package, those of the server through its link."""
    found = {}
    for path in (*ROOT.rglob("*.py"), *(ROOT / "server").resolve().rglob("*.py")):
        base = ROOT if path.is_relative_to(ROOT) else (ROOT / "server").resolve()
        parts = [
            PACKAGE,
            *(() if base == ROOT else ("server",)),
            *path.relative_to(base).with_suffix("").parts,
        ]
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path, known: set[str]) -> Iterator[str]:
    """The package's modules that a module imports anywhere in it, under TYPE_CHECKING too."""
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{source}.{alias.name}"
                found = full if full in known else source
                if found in known:
                    yield found


def graph(files: dict[str, Path]) -> dict[str, set[str]]:
    return {name: set(imports(name, path, set(files))) - {name} for name, path in files.items()}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """The modules of one circle in their order, none where there is no circle."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return way[way.index(name) :]
        if name in done:
            return []
        for after in sorted(arrows[name]):
            if found := visit(after, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := visit(name, []))), [])


def test_there_is_no_circle_of_modules() -> None:
    arrows = graph(modules())
    assert len(arrows) > 150 and arrows["pyllama_long.llama"] and arrows["pyllama_long.server.app"]
    found = circle(arrows)
    assert not found, " -> ".join([*found, found[0]])


@pytest.mark.parametrize(
    "b",
    [
        "from pyllama_long import a",
        "from . import a",
        "import pyllama_long.a",
        "if TYPE_CHECKING:\n    from pyllama_long.a import A",
        "def f():\n    from .a import A",
    ],
)
def test_circles_of_every_kind_are_found(tmp_path: Path, b: str) -> None:
    files = {f"{PACKAGE}.{name}": tmp_path / f"{name}.py" for name in "abc"}
    for path, text in zip(
        files.values(), ("from .c import C", b, "from pyllama_long.b import B"), strict=True
    ):
        path.write_text(text)
    assert set(circle(graph(files))) == set(files)
    files[f"{PACKAGE}.b"].write_text("import a")
    assert circle(graph(files)) == []
