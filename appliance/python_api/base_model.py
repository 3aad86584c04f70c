"""What every model written in Python has: a name, a load, a health, an end."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from appliance.core.errors import ApplianceError
from appliance.core.model import Model

Method = TypeVar("Method", bound=Callable[..., Any])  # Any: users' methods take and give what they like

_OFFERED = "_appliance_is_offered"


def offered(method: Method) -> Method:
    """Mark a method that is only there to be overridden: a model whose class leaves it alone is never asked this."""
    setattr(method, _OFFERED, True)
    return method


class BasePythonModel:
    """A model written in Python; subclass one of its kinds.

    `load`, `healthy` and `stop` may be plain, which then run in a thread of their own, or asynchronous.
    """

    backing: Model | None = None
    """What answers the operations that the class itself does not, where there is something."""

    ready: bool = False
    """It is loaded; a `load` that returns sets it, whoever called it, unless what it returns is False."""

    model_dir: Path | None = None
    """Where the bytes of the config's `storage` lie, from before `load`; None where there is none."""

    proof: Mapping[str, Any] | None = MappingProxyType({})
    """
    The request whose good answer shows that the model works, before anybody else is let in.

    Its fields go over those of the smallest request there is, so `{}` is that one; `{"prompt": "1+1"}` asks for a
    completion. None asks nothing: then being healthy is enough.
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
            cls.load = _remembered(cls.__dict__["load"])  # type: ignore[method-assign]  # by itself, and more

    def load(self) -> Any:  # Any: False says that it failed; a subclass's may be asynchronous
        """Get ready to answer; called once before the first request, by whoever comes first."""
        self.ready = True
        return True

    @offered
    def healthy(self) -> Any:  # Any: True or False; a subclass's may be asynchronous
        """Whether it can answer now; asked again and again.

        Raises:
            EngineDeadError: it never will again.
        """
        return self.ready

    @offered
    def stop(self) -> Any:  # Any: nothing; a subclass's may be asynchronous
        """Let go of what `load` took; called once, after the last answer."""


def _remembered(load: Callable[..., Any]) -> Callable[..., Any]:
    """The same load, which says by `ready` whether it is done."""
    if inspect.iscoroutinefunction(load):

        @functools.wraps(load)
        async def load_async(self: BasePythonModel, *args: Any, **keywords: Any) -> Any:
            with _unready_if_broken(self):
                done = await load(self, *args, **keywords)
            self.ready = done is not False
            return done

        return load_async

    @functools.wraps(load)
    def load_plain(self: BasePythonModel, *args: Any, **keywords: Any) -> Any:
        with _unready_if_broken(self):
            done = load(self, *args, **keywords)
        self.ready = done is not False
        return done

    return load_plain


@contextmanager
def _unready_if_broken(model: BasePythonModel) -> Iterator[None]:
    """The load of a parent class may have said that it is done."""
    try:
        yield
    except BaseException:
        model.ready = False
        raise


def overridden(model: BasePythonModel, name: str) -> Callable[..., Any] | None:
    """The method of this name, or None where the class leaves it as it was offered."""
    method = getattr(model, name, None)
    return None if method is None or getattr(method, _OFFERED, False) else method
