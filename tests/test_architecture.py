"""
The shape of the house: floors, no rings, heavy imports in one room, files and functions that fit.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent / "appliance"
# What is generated is nobody's to write well.
FILES = sorted(file for file in HOUSE.rglob("*.py") if "_pb2" not in file.name)

FLOORS = (
    {"concurrency", "errors", "json_scan", "logs", "nearest", "options", "processes", "record", "section"}
    | {"service_links"},
    {"admission"},
    {"contract", "layout", "storage", "tensors", "traits", "usage"},
    {"access", "python_model", "telemetry", "upstream", "vllm_engine"},
    {"plan", "translation"},
    {"models"},
    {"config", "openai"},
    {"cache", "diff", "key", "lifecycle", "planned", "probe", "pull", "validated"},
    {"page", "protocols"},
    {"server", "smoke"},
    {"cli", "model_server"},
    {"__main__"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = {"vllm", "torch", "transformers", "starlette", "fastapi"}


def _room(file: Path) -> str:
    return file.relative_to(HOUSE).parts[0].removesuffix(".py")


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _rooms_used(file: Path) -> set[str]:
    names = (name.split(".") for name in _imports(ast.parse(file.read_text())))
    return {parts[1] for parts in names if parts[0] == "appliance" and len(parts) > 1} - {_room(file)}


def _functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_every_room_has_a_floor() -> None:
    """
    A new room is named in the table, or this test says so.
    """
    rooms = {_room(file) for file in FILES} - {"__init__"}

    assert rooms == set(FLOOR_OF)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HOUSE)))
def test_a_room_imports_only_from_floors_below(file: Path) -> None:
    """
    Never sideways, never upwards.
    """
    if _room(file) == "__init__":
        return
    above = {room for room in _rooms_used(file) if FLOOR_OF[room] >= FLOOR_OF[_room(file)]}

    assert not above, f"{file.name} imports from {above}"


def test_no_file_imports_itself_in_a_ring() -> None:
    """
    Within the rooms too, the modules have an order.
    """
    modules = {".".join(("appliance", *file.relative_to(HOUSE).with_suffix("").parts)): file for file in FILES}
    graph = {}
    for module, file in modules.items():
        names = set(_imports(ast.parse(file.read_text())))
        graph[module] = {other for other in modules if other in names or any(n.startswith(f"{other}.") for n in names)}
        graph[module] -= {module}

    TopologicalSorter(graph).prepare()


def test_one_room_alone_knows_vllm() -> None:
    """
    A new vLLM is a change of one room.
    """
    knowing = {
        _room(file) for file in FILES for name in _imports(ast.parse(file.read_text())) if name.split(".")[0] in HEAVY
    }

    assert knowing == {"vllm_engine"}


@pytest.mark.parametrize("module", ["appliance.config", "appliance.cli", "appliance.server", "appliance.models"])
def test_importing_needs_no_engine(module: str) -> None:
    """
    Whatever reads a config or proxies starts at once, with none of the heavy packages.
    """
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


def test_reading_a_config_opens_no_connection() -> None:
    """
    What speaks HTTP takes longer to import than a file takes to check.
    """
    code = "import sys, appliance.config; print(*sorted({'aiohttp', 'litestar', 'granian'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HOUSE)))
def test_files_and_functions_fit(file: Path) -> None:
    """
    A file is one idea, 260 lines at most; a function fits one glance, 45 lines at most.
    """
    long = {each.name for each in _functions(file) if (each.end_lineno or 0) - each.lineno >= 45}

    assert len(file.read_text().splitlines()) <= 260
    assert not long


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HOUSE)))
def test_everything_public_is_described(file: Path) -> None:
    """
    Modules, public classes and public functions say what they are; overriding methods inherit that.
    """
    tree = ast.parse(file.read_text())
    bare = [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]

    assert ast.get_docstring(tree)
    assert not bare
