"""The architecture: layers, no import cycles, heavy imports in one package, sizes of files and functions."""

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
    {"core"},
    {"config"},
    {"tensors", "auth", "limits", "telemetry", "convert", "over_chat"},
    {"storage", "proxy"},
    {"planner"},
    {"adapters", "engines", "export"},
    {"python_api"},
    {"models"},
    {"batches", "responses"},
    {"api", "errors", "openai", "ui"},
    {"server"},
    {"cli", "kserve"},
    {"__main__"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = {"vllm", "torch", "transformers", "starlette", "fastapi"}

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 50
MAX_CONFIG_MODULES = 45


def _room(file: Path) -> str:
    return file.relative_to(HOUSE).parts[0].removesuffix(".py")


def _name(file: Path) -> str:
    return str(file.relative_to(HOUSE))


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
    """A new room is named in the table, or this test says so."""
    rooms = {_room(file) for file in FILES} - {"__init__"}

    assert rooms == set(FLOOR_OF)


def test_a_room_imports_only_from_floors_below() -> None:
    """Never sideways, never upwards."""
    above = [
        f"{_name(file)} imports {room}"
        for file in FILES
        if _room(file) != "__init__"
        for room in sorted(_rooms_used(file))
        if FLOOR_OF[room] >= FLOOR_OF[_room(file)]
    ]

    assert above == []


def test_no_file_imports_itself_in_a_ring() -> None:
    """Within the rooms too, the modules have an order."""
    modules = {".".join(("appliance", *file.relative_to(HOUSE).with_suffix("").parts)): file for file in FILES}
    graph = {}
    for module, file in modules.items():
        names = set(_imports(ast.parse(file.read_text())))
        graph[module] = {other for other in modules if other in names or any(n.startswith(f"{other}.") for n in names)}
        graph[module] -= {module}

    TopologicalSorter(graph).prepare()


def test_one_room_alone_knows_vllm() -> None:
    """A new vLLM is a change of one room."""
    knowing = {
        _room(file) for file in FILES for name in _imports(ast.parse(file.read_text())) if name.split(".")[0] in HEAVY
    }

    assert knowing == {"engines"}


@pytest.mark.parametrize(
    "module", ["appliance.config.loader", "appliance.cli.main", "appliance.server", "appliance.models.manager"]
)
def test_importing_needs_no_engine(module: str) -> None:
    """Whatever reads a config or proxies starts at once, with none of the heavy packages."""
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


def test_reading_a_config_opens_no_connection() -> None:
    """What speaks HTTP takes longer to import than a file takes to check."""
    code = "import sys, appliance.config; print(*sorted({'aiohttp', 'litestar', 'granian'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


def test_reading_a_config_needs_only_config_and_core() -> None:
    """Its classes are data: a program that reads, compares or describes a config loads few modules of ours."""
    modules = "appliance.config.loader, appliance.config.diff, appliance.config.json_schema"
    code = f"import sys, {modules}; print(*(name for name in sys.modules if name.startswith('appliance.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()

    assert [name for name in loaded if name.split(".")[1] not in {"config", "core"}] == []
    assert len(loaded) <= MAX_CONFIG_MODULES


def test_a_models_status_has_one_writer() -> None:
    """Its fields are assigned in its own module and by the model's runner; everybody else reads or asks the runner."""
    (fields,) = (
        {each.target.id for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)}
        for node in ast.parse((HOUSE / "models/model_status.py").read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "ModelStatus"
    )
    writers = {
        f"{_name(file)}:{node.lineno}"
        for file in FILES
        for node in _writes_to_statuses(ast.parse(file.read_text()), fields)
    }

    assert {writer.split(":")[0] for writer in writers} == {"models/model_runner.py"}, sorted(writers)


def _writes_to_statuses(tree: ast.AST, fields: set[str]) -> Iterator[ast.Attribute]:
    """Stores to the fields of a status, and uses of `enter`: by the usual names, and those of arguments of its type."""
    names = {"status", "entry"} | {
        node.arg for node in ast.walk(tree) if isinstance(node, ast.arg) and _is_status(node.annotation)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        holder = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", None)
        is_written = node.attr in fields and isinstance(node.ctx, ast.Store | ast.Del)
        if holder in names and (is_written or node.attr == "enter"):
            yield node


def _is_status(annotation: ast.expr | None) -> bool:
    return isinstance(annotation, ast.Name) and annotation.id == "ModelStatus"


def test_files_and_functions_fit() -> None:
    """A file is one concept, 600 lines at most; a function fits one glance, 50 lines at most."""
    lines = {_name(file): len(file.read_text().splitlines()) for file in FILES}
    functions = {
        f"{_name(file)}: {each.name}": (each.end_lineno or 0) - each.lineno + 1
        for file in FILES
        for each in _functions(file)
    }

    assert {name: count for name, count in lines.items() if count > MAX_FILE_LINES} == {}
    assert {name: count for name, count in functions.items() if count > MAX_FUNCTION_LINES} == {}


def test_everything_public_is_described() -> None:
    """Modules, public classes and public functions say what they are; overriding methods inherit that."""
    bare = [f"{_name(file)}: {name}" for file in FILES for name in _undescribed(ast.parse(file.read_text()))]

    assert bare == []


def _undescribed(tree: ast.Module) -> Iterator[str]:
    if not ast.get_docstring(tree):
        yield "the module"
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not node.name.startswith("_") and not ast.get_docstring(node):
            yield node.name
