"""What vLLM and transformers import at once, although a front end rarely uses it.

PyTorch's compiler, transformers' model classes, and what they import in turn (SciPy, scikit-learn, pandas, SymPy,
NetworkX) take a third of the memory and of the time of an import of vLLM. Engines use them. While a front end imports
vLLM, a few names stand for what is imported when they are used, so that code which does use them works as ever. They
are deferred for the importing modules below alone: other code, such as a Python model class, imports as usual.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from appliance.engines.vllm.patches import replaced

# Importing modules, and what each imports without using it at once.
_DEFERRED: Mapping[str, str] = {
    "transformers.models.auto.auto_factory": "transformers.generation",
    "transformers.processing_utils": "transformers.modeling_utils",
    "transformers.utils.type_validators": "transformers.activations",
    "vllm.multimodal.audio": "scipy.signal",
    "vllm.multimodal.video": "cv2",
    "vllm.tracing.otel": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
}

# Who uses a model class of transformers has imported this before.
_MODEL_CLASSES = "transformers.modeling_utils"

_COMPILER = "torch._inductor"

# A base class that vLLM's config needs of the compiler. The package around this file imports all of it.
_COMPILER_FILE = "custom_graph_pass"

# It patches the compiler, and goes on if there is none.
_COMPILER_PATCH = "vllm.env_override"


class _Deferred:
    """A name of a module, which is imported when the name is used."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def resolve(self) -> Any:  # Any: whatever the name stands for
        return getattr(importlib.import_module(self._module), self._name)

    def __getattr__(self, name: str) -> Any:  # Any: as above
        return getattr(self.resolve(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # Any: as above
        return self.resolve()(*args, **kwargs)

    def __len__(self) -> int:
        return len(self.resolve())

    def __contains__(self, key: object) -> bool:
        return key in self.resolve()

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self.resolve())


class _Names:
    """What `from MODULE import NAME` takes names from, instead of the module."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> _Deferred:
        return _Deferred(self._module, name)


class _Package:
    """What `import MODULE` binds: the module or a package around it, which is imported for any other name."""

    def __init__(self, name: str, module: str) -> None:
        self._name, self._module = name, module

    def __getattr__(self, name: str) -> Any:  # Any: whatever the package has
        inner = f"{self._name}.{name}"
        if f"{self._module}.".startswith(f"{inner}."):
            return _Package(inner, self._module)
        return getattr(importlib.import_module(self._name), name)


class _OnImport(MetaPathFinder):
    """Calls a function with a module before it is executed, and one after, whoever imports it."""

    def __init__(
        self,
        name: str,
        *,
        before: Callable[[ModuleType], object] = lambda _: None,
        after: Callable[[ModuleType], object] = lambda _: None,
    ) -> None:
        self._name, self._before, self._after = name, before, after
        if name not in sys.modules:
            sys.meta_path.insert(0, self)

    def find_spec(self, fullname: str, path: Sequence[str] | None, _target: object = None) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_between(module: ModuleType) -> None:
                self._before(module)
                execute(module)
                self._after(module)

            spec.loader.exec_module = execute_between  # type: ignore[method-assign]  # a loader has one module
        return spec


@contextlib.contextmanager
def deferred_imports() -> Iterator[None]:
    """Defer what a front end rarely uses, for the first import of vLLM, in the block."""
    import torch

    has_compiler = _COMPILER in sys.modules
    if not has_compiler:
        _import_compiler_file(Path(torch.__path__[0]))
    importers: list[dict[str, Any]] = []  # Any: the names of a module
    _OnImport(_MODEL_CLASSES, after=lambda _: _resolve(importers))
    import_now = builtins.__import__

    # Any: the arguments of `__import__`, of which a statement gives all.
    def import_or_defer(name: str, *args: Any, **options: Any) -> Any:
        names, fromlist, level = (args[0] or {}, args[2], args[3]) if len(args) == 4 else ({}, None, 0)
        importer, package = names.get("__name__"), names.get("__package__")
        if importer == _COMPILER_PATCH and name == _COMPILER and not has_compiler:
            raise ImportError(f"{name} is imported later", name=name)
        module = _DEFERRED.get(importer or "")
        if module is None or importlib.util.resolve_name("." * level + name, package) != module:
            return import_now(name, *args, **options)
        importers.append(names)
        return _Names(module) if fromlist else _Package(module.partition(".")[0], module)

    with contextlib.ExitStack() as stack:
        for owner, name in ((torch, "compile"), (torch.compiler, "allow_in_graph")):
            stack.enter_context(replaced(owner, name, _deferred(getattr(owner, name))))
        stack.enter_context(replaced(builtins, "__import__", import_or_defer))
        yield


def _resolve(importers: Sequence[dict[str, Any]]) -> None:
    """Replace the deferred names of modules; a class of transformers may be the base of a new one."""
    for names in importers:
        if names["__name__"].startswith("transformers."):
            names.update({key: each.resolve() for key, each in names.items() if isinstance(each, _Deferred)})


def _import_compiler_file(torch: Path) -> None:
    """Import one file of the compiler without the others; the package has it when it is imported."""
    name = f"{_COMPILER}.{_COMPILER_FILE}"
    path = torch / _COMPILER.rpartition(".")[2] / f"{_COMPILER_FILE}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not there", name=name)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _OnImport(_COMPILER, before=lambda package: setattr(package, _COMPILER_FILE, module))
    _OnImport(
        f"{_COMPILER}.lowering",
        after=lambda _: importlib.import_module(_COMPILER_PATCH)._patch_inductor_fallback_allow_list(),
    )


def _deferred(decorate: Callable[..., Any]) -> Callable[..., Any]:
    """Return a decorator whose functions are decorated when they are called."""

    @wraps(decorate)
    def decorator(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return partial(decorator, **options)
        decorated: Callable[..., Any] | None = None

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal decorated
            if decorated is None:
                decorated = decorate(function, **options)
            return decorated(*args, **kwargs)

        return call

    return decorator
