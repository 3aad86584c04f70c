"""A model whose class a config names: imported and made when it is loaded, and no sooner."""

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
from appliance.core.model import Model, ModelRequest, ModelResponse, Operation
from appliance.core.suggestions import did_you_mean, known_names
from appliance.python_api.base_model import BasePythonModel
from appliance.python_api.invoke import in_thread
from appliance.python_api.model_adapter import bridged
from appliance.python_api.openai_model import METHODS
from appliance.python_api.tensor_model import OF_TENSORS
from appliance.python_api.user_code import reason_of, user_code

Result = TypeVar("Result")


class LazyPythonModel:
    """A model of the contract out of a class that is not imported yet."""

    def __init__(self, name: str, config: PythonConfig, offered: frozenset[Operation]) -> None:
        """`offered` is what a model of this kind can be asked, of which the class must do something."""
        self._name = name
        self._config = config
        self._offered = offered
        self._bridge: Model | None = None

    @property
    def operations(self) -> frozenset[Operation]:
        """What the class can be asked; while it is not imported, what any of its kind can."""
        return self._offered if self._bridge is None else self._bridge.operations

    @property
    def warmup_request(self) -> ModelRequest | None:
        return self._made.warmup_request

    async def load(self, artifacts: Mapping[str, Path]) -> None:
        # In a thread: modules such as torch take seconds to import.
        model = await in_thread(partial(made, self._name, self._config, artifacts.get("model")))
        bridge = bridged(model)
        if not bridge.operations & (self._offered | OF_TENSORS):
            wanted = ", ".join(METHODS[operation] for operation in sorted(self._offered))
            raise LoadError(
                f"engine.python: {self._config.python} has none of the methods {wanted} or predict, which this class "
                "of models answers with; override one, or declare the model with another class"
            )
        self._bridge = bridge
        await bridge.load(artifacts)

    async def check(self) -> None:
        await self._made.check()

    async def handle(self, call: ModelRequest) -> ModelResponse:
        return await self._made.handle(call)

    def describe(self) -> Mapping[str, Any]:
        return {} if self._bridge is None else self._bridge.describe()

    async def close(self) -> None:
        if self._bridge is not None:
            await self._bridge.close()

    @property
    def _made(self) -> Model:
        if self._bridge is None:
            raise AssertionError("asked before it was loaded; this is a bug")
        return self._bridge


def made(name: str, config: PythonConfig, model_dir: Path | None) -> BasePythonModel:
    """An object of the class that a section names; `model_dir` is passed to a constructor that takes it.

    Raises:
        LoadError: the class cannot be imported, is no model, or does not take the arguments.
    """
    kind = _imported(config.python)
    takes = inspect.signature(kind).parameters
    keywords: dict[str, Any] = dict(config.args)
    if model_dir is not None and "model_dir" in takes:
        keywords.setdefault("model_dir", model_dir)
    for word in keywords:
        if word not in takes and not any(each.kind is each.VAR_KEYWORD for each in takes.values()):
            hint = did_you_mean(word, takes) or known_names("arguments", [each for each in takes if each != "name"])
            raise LoadError(f"engine.args: {config.python} takes no {word!r}; {hint}")
    try:
        inspect.signature(kind).bind(name, **keywords)
    except TypeError as error:
        raise LoadError(f"engine.args: {config.python} cannot be made: {error}; correct engine.args") from error
    model = _run(f"{config.python} cannot be made", partial(kind, name, **keywords))
    if getattr(model, "name", None) is None:
        raise LoadError(f"engine.python: {config.python} has no name; have its __init__ call super().__init__(name)")
    return model


def _imported(place: str) -> type[BasePythonModel]:
    module_name, _, class_name = place.partition(":")
    # As with `python -m`, but last: what lies there takes nobody's place.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = _run(f"importing {module_name!r} failed", partial(importlib.import_module, module_name))
    except ModuleNotFoundError as error:
        missing = f"its module {module_name!r}" if module_name.startswith(error.name or "") else f"{error.name!r}"
        raise LoadError(
            f"engine.python: {place}: there is no module {error.name!r}; install {missing}, put it on PYTHONPATH, "
            f"or start the appliance in its directory, which is {Path.cwd()} now"
        ) from error
    found = getattr(module, class_name, None)
    if isinstance(found, type) and issubclass(found, BasePythonModel):
        return found
    models = [
        name for name, each in vars(module).items() if isinstance(each, type) and issubclass(each, BasePythonModel)
    ]
    hint = did_you_mean(class_name, models) or known_names("models there", models) if models else "it has no models"
    what = "has no such class" if found is None else "is no subclass of a model of appliance.openai"
    raise LoadError(f"engine.python: {place} {what}; {hint}")


def _run(what: str, work: Callable[[], Result]) -> Result:
    """Code of the user's, whose own fault is told with where it lies."""
    missing: ModuleNotFoundError
    try:
        with user_code(what):
            try:
                return work()
            except ModuleNotFoundError as error:
                missing = error
    except (ApplianceError, NotImplementedError) as error:
        reason = reason_of(error.__cause__ or error)
        raise LoadError(f"engine.python: {what}: {reason}; the log says where in your code") from error
    raise missing
