"""A model whose class a config names: imported and created when it is loaded, not earlier."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from appliance.config.engine import PythonConfig
from appliance.core.errors import ApplianceError, LoadError
from appliance.core.model import Operation
from appliance.core.suggestions import did_you_mean, known_names
from appliance.python_api.base_model import BasePythonModel
from appliance.python_api.model_adapter import PythonModelAdapter
from appliance.python_api.openai_model import METHODS
from appliance.python_api.tensor_model import METHODS as TENSOR_METHODS
from appliance.python_api.user_code import describe_exception, run_in_thread, user_code

Result = TypeVar("Result")


class LazyPythonModel(PythonModelAdapter):
    """A model whose class is imported by `load`."""

    def __init__(self, name: str, config: PythonConfig, supported: frozenset[Operation]) -> None:
        """`supported` are the operations of its kind; the class must implement at least one."""
        self._name, self._config, self._supported = name, config, supported
        self.operations = supported
        self._is_loaded = False

    @property
    def passes_bytes(self) -> bool:
        return self._is_loaded and super().passes_bytes

    async def load(self, artifacts: Mapping[str, Path]) -> None:
        # In a thread: modules such as torch take seconds to import.
        model = await run_in_thread(partial(_create_model, self._name, self._config, artifacts.get("model")))
        if not PythonModelAdapter(model).operations & (self._supported | frozenset(TENSOR_METHODS)):
            names = [METHODS[each] for each in sorted(self._supported) if each in METHODS] or ["explain"]
            raise LoadError(
                f"engine.python: {self._config.python} has none of the methods {', '.join(names)} or predict, which "
                "this class of models answers with; override one, or declare the model with another class"
            )
        self._adopt(model)
        self._is_loaded = True
        await super().load(artifacts)

    def describe(self) -> Mapping[str, Any]:
        return super().describe() if self._is_loaded else {}

    async def close(self) -> None:
        if self._is_loaded:
            await super().close()


def _create_model(name: str, config: PythonConfig, model_dir: Path | None) -> BasePythonModel:
    """Return an object of the config's class; `model_dir` is passed to a constructor that takes it."""
    class_ = _import_class(config.python)
    parameters = inspect.signature(class_).parameters
    keywords: dict[str, Any] = dict(config.args)
    if model_dir is not None and "model_dir" in parameters:
        keywords.setdefault("model_dir", model_dir)
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    for word in keywords:
        if word not in parameters and not takes_any:
            hint = did_you_mean(word, parameters) or known_names("arguments", [p for p in parameters if p != "name"])
            raise LoadError(f"engine.args: {config.python} takes no {word!r}; {hint}")
    try:
        inspect.signature(class_).bind(name, **keywords)
    except TypeError as error:
        raise LoadError(f"engine.args: {config.python} cannot be made: {error}; correct engine.args") from error
    model = _run(f"{config.python} cannot be made", partial(class_, name, **keywords))
    if getattr(model, "name", None) is None:
        raise LoadError(f"engine.python: {config.python} has no name; have its __init__ call super().__init__(name)")
    return model


def _import_class(reference: str) -> type[BasePythonModel]:
    module_name, _, class_name = reference.partition(":")
    # As with `python -m`, but last, so that nothing there hides an installed module.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = _run(f"importing {module_name!r} failed", partial(importlib.import_module, module_name))
    except ModuleNotFoundError as error:
        missing = f"its module {module_name!r}" if module_name.startswith(error.name or "") else f"{error.name!r}"
        raise LoadError(
            f"engine.python: {reference}: there is no module {error.name!r}; install {missing}, put it on PYTHONPATH, "
            f"or start the appliance in its directory, which is {Path.cwd()} now"
        ) from error
    found = getattr(module, class_name, None)
    if isinstance(found, type) and issubclass(found, BasePythonModel):
        return found
    models = [
        name for name, each in vars(module).items() if isinstance(each, type) and issubclass(each, BasePythonModel)
    ]
    hint = did_you_mean(class_name, models) or known_names("models there", models) if models else "it has no models"
    problem = "has no such class" if found is None else "is not a subclass of a model of appliance.openai"
    raise LoadError(f"engine.python: {reference} {problem}; {hint}")


def _run(failure: str, work: Callable[[], Result]) -> Result:
    """Run code of the user; `failure` begins the message of what it raises."""
    try:
        with user_code(failure, passes=(ModuleNotFoundError,)):
            return work()
    except (ApplianceError, NotImplementedError) as error:
        reason = describe_exception(error.__cause__ or error)
        raise LoadError(f"engine.python: {failure}: {reason}; the log says where in your code") from error
