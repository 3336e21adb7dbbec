"""A room imports only rooms below it: the drawing in CONTRIBUTING.md, held against the code."""

import ast
from pathlib import Path

import pytest

import apr

ROOT = Path(apr.__file__).parent
# From the ground up; rooms in one line may not import each other, except where it says so.
FLOORS = [
    {"errors", "contracts", "atomic", "receipt", "device", "rope"},
    {"architecture", "dtypes"},
    {"tensors", "quant", "tokenizer"},
    {"families", "mapped"},
    {"checkpoint"},
    {"formats"},
    {"model", "native"},
    {"cuda"},
    {"data", "engine"},
    {"train", "qa", "bench", "export", "inspect", "chat", "eval"},
    {"importing", "diff"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
# errors, contracts and atomic are the ground itself; a tensor decodes itself through quant.
TOGETHER = [FLOORS[0], FLOORS[1], {"tensors", "quant"}]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room(parts):
    return parts[0].removesuffix(".py")


def imports(path):
    """Rooms that a module imports at run time; those for type checkers alone are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "apr":
            names = [f"apr.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "apr" and len(parts) > 1:
                yield parts[1]


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if parts != ("__init__.py",):
            yield pytest.param(path, room(parts), id="/".join(parts))


@pytest.mark.parametrize(("path", "here"), list(modules()))
def test_a_room_imports_only_rooms_below_it(path, here):
    assert here in FLOOR, f"{here} has no floor yet: add it here and to CONTRIBUTING.md"
    for there in imports(path):
        if there == here or any({here, there} <= rooms for rooms in TOGETHER):
            continue
        assert FLOOR[there] < FLOOR[here], f"{here} imports {there}"
