"""The base class of models written in Python: name, `load`, `healthy`, `stop`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import ValidationError

from appliance.config.base import BaseConfig
from appliance.core.errors import ApplianceError, ConfigError, Problem, UnavailableError
from appliance.core.model import Model
from appliance.core.suggestions import did_you_mean, known_names
from appliance.python_api.user_code import UserCodeError, call_method

Method = TypeVar("Method", bound=Callable[..., Any])  # Any: methods of users have any arguments and results
ConfigT = TypeVar("ConfigT", bound=BaseConfig)

_IS_DEFAULT = "_appliance_is_default"


def overridable(method: Method) -> Method:
    """Mark a default method, which counts as absent unless a subclass overrides it."""
    setattr(method, _IS_DEFAULT, True)
    return method


class NotReadyError(UnavailableError):
    """What our own `healthy` raises; clients see its text up to ", because "."""


class BasePythonModel:
    """A model written in Python; users subclass one of its subclasses.

    `load`, `healthy` and `stop` may be plain methods, which run in a thread of their own, or asynchronous ones.
    """

    backing: Model | None = None
    """The model that handles the operations that the class itself does not; None if there is none."""

    ready: bool = False
    """Whether it is loaded; a `load` that returns sets it, unless it returns False."""

    model_dir: Path | None = None
    """The local directory of the config's `storage`, set before `load`; None without a storage."""

    proof: Mapping[str, Any] | None = MappingProxyType({})
    """
    The request whose successful response proves that the model works, sent before it becomes ready.

    Its fields override those of the smallest possible request, so `{}` is that request; `{"prompt": "1+1"}` requests a
    completion. For a model of tensors it is the whole request, `{"instances": [...]}` or `{"inputs": [...]}` with
    tensors, and `{}` is zeros for the inputs of `get_input_types`, if there are any. None sends no request: then being
    healthy is enough.
    """

    def __init__(self, name: str) -> None:
        """`name` is what clients send as `model`."""
        if not isinstance(name, str) or not name:
            raise ApplianceError(f"{type(self).__name__}: its name is {name!r}; must be text, such as 'my-model'")
        self.name = name

    # Any: a subclass's own keywords.
    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "load" in cls.__dict__:
            cls.load = _setting_ready(cls.__dict__["load"])  # type: ignore[method-assign]  # replaced on purpose

    def load(self) -> Any:  # Any: False means failure; a subclass's may be asynchronous
        """Get ready to answer; called once, before the first request."""
        self.ready = True
        return True

    @overridable
    def healthy(self) -> Any:  # Any: True or False; a subclass's may be asynchronous
        """Return whether it can answer now; called again and again.

        Raises:
            EngineDeadError: it cannot recover.
        """
        return self.ready

    @overridable
    def stop(self) -> Any:  # Any: nothing; a subclass's may be asynchronous
        """Release what `load` acquired; called once, after the last response."""

    async def _run_load(self) -> bool:
        """Load the model unless it is ready, as the server does, and return whether that succeeded."""
        return self.ready or await call_method(self.load) is not False

    async def _run_stop(self) -> None:
        """Stop the model, as the server does; what its `stop` raises is logged."""
        if (stop := overridden_method(self, "stop")) is not None:
            with suppress(UserCodeError):
                await call_method(stop)


def _setting_ready(load: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a `load` so that it sets `ready`."""

    def load_plain(self: BasePythonModel, *args: Any, **keywords: Any) -> Any:
        with _ready_after(self) as finish:
            return finish(load(self, *args, **keywords))

    async def load_async(self: BasePythonModel, *args: Any, **keywords: Any) -> Any:
        with _ready_after(self) as finish:
            return finish(await load(self, *args, **keywords))

    return functools.wraps(load)(load_async if inspect.iscoroutinefunction(load) else load_plain)


@contextmanager
def _ready_after(model: BasePythonModel) -> Iterator[Callable[[Any], Any]]:
    """Yield a function that sets `ready` by the result of `load`; an error resets it, which a parent may have set."""

    def finish(result: Any) -> Any:
        model.ready = result is not False
        return result

    try:
        yield finish
    except BaseException:
        model.ready = False
        raise


def overridden_method(model: BasePythonModel, name: str) -> Callable[..., Any] | None:
    """Return the method of this name, or None if it is still the default one."""
    method = getattr(model, name, None)
    return None if method is None or getattr(method, _IS_DEFAULT, False) else method


def config_from_keywords(
    config: type[ConfigT], keywords: Mapping[str, Any], source: str, path: str = ""
) -> ConfigT:  # Any: what a program passes
    """Return the config of a program's keywords; `source` and `path` locate them in errors.

    Raises:
        ConfigError: some of them are wrong; it names them all, and no value, which may be a secret.
    """
    try:
        return config.model_validate(keywords)
    except ValidationError as error:
        problems = []
        for detail in error.errors(include_url=False, include_input=False):
            parts, message = [str(part) for part in (path, *detail["loc"]) if part != ""], detail["msg"]
            if detail["type"] == "extra_forbidden":
                known = list(config.model_fields)
                message = f"unknown key; {did_you_mean(parts[-1], known) or known_names('keys', known)}"
            problems.append(Problem(source, None, None, ".".join(parts), message))
        raise ConfigError(problems) from None
