"""The table of KServe's names in the docs is what there is, here and in KServe."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from reference_servers import kserve_environment

TABLE = Path(__file__).parent.parent.parent / "docs/guides/kserve.md"

MODULES = (
    "kserve",
    "kserve.constants.constants",
    "kserve.errors",
    "kserve.logging",
    "kserve.model",
    "kserve.model_server",
    "kserve.predictor_config",
    "kserve.protocol.infer_type",
    "kserve.utils.utils",
)

# Prints the public names of KServe's modules: what they define, and submodules of the package.
_NAMES = """
import importlib, sys, types
modules, sys.argv[1:] = sys.argv[1:], []
import json
names = []
for module_name in modules:
    module = importlib.import_module(module_name)
    for name in dir(module):
        value = getattr(module, name)
        owner = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", module_name)
        is_own = owner.startswith("kserve") if module_name == "kserve" else owner == module_name
        if is_own and not name.startswith("_"):
            names.append(f"{module_name}.{name}")
print(json.dumps(names))
"""


def rows() -> Iterator[tuple[str, str]]:
    """Each name or pattern of the table, and what it says is here."""
    for line in TABLE.read_text().splitlines():
        if line.startswith("| `kserve"):
            _, names, here, *_ = line.split("|")
            yield from ((name, here.strip()) for name in re.findall(r"`([^`]+)`", names))


def exists(name: str) -> bool:
    """Whether the name can be imported from `appliance.kserve`."""
    path = f"appliance.{name}"
    module, _, attribute = path.rpartition(".")
    try:
        parent = import_module(module)
    except ImportError:
        return False
    return hasattr(parent, attribute) or (hasattr(parent, "__path__") and find_spec(path) is not None)


@pytest.mark.parametrize(("name", "here"), [row for row in rows() if "*" not in row[0]])
def test_each_name_of_the_table_is_here_or_absent(name: str, here: str) -> None:
    """As its row says."""
    assert here in {"same", "different", "absent"}
    assert exists(name) == (here != "absent")


def test_every_name_of_kserve_is_in_the_table(pytestconfig: pytest.Config) -> None:
    """None is left out, and none is made up."""
    python = kserve_environment(pytestconfig)
    done = subprocess.run([python, "-c", _NAMES, *MODULES], capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout.splitlines()[-1])
    patterns = [name for name, _ in rows()]

    assert [name for name in theirs if not any(fnmatchcase(name, pattern) for pattern in patterns)] == []
