"""Serving models from a Python program: the same server that `appliance serve` runs, without a file."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from appliance.config import Config, LoadedConfig
from appliance.config.models import ModelConfig
from appliance.config.server import ServerConfig
from appliance.config.telemetry import LoggingConfig
from appliance.core.errors import ApplianceError, ConfigError, Problem
from appliance.core.model import Model, Peers
from appliance.models.factory import ModelFactory
from appliance.python_api.base_model import BasePythonModel, config_from_keywords
from appliance.python_api.model_adapter import PythonModelAdapter
from appliance.server import serve

_SOURCE = "ModelServer"


class PythonModelConfig(ModelConfig):
    """The config of a model that a program made, which no file could declare."""

    @property
    def backend(self) -> str:
        return "python"


class PythonModelFactory(ModelFactory):
    """Serves the models of a program by their names."""

    def __init__(self, models: Iterable[BasePythonModel]) -> None:
        super().__init__()
        self._models = {model.name: model for model in models}

    def create(self, config: ModelConfig, peers: Peers) -> Model:  # noqa: ARG002 - see ModelFactory
        return PythonModelAdapter(self._models[config.name])


class ModelServer:
    """Answers the clients of models written in Python, with probes, metrics, a log and a drain like any appliance."""

    def __init__(
        self,
        http_port: int = 8080,
        grpc_port: int | None = None,
        *,
        logging: Mapping[str, Any] | None = None,  # Any: checked like the file's
        **server: Any,
    ) -> None:
        """
        `grpc_port` is for the Open Inference Protocol over gRPC; None is no gRPC. `logging` and the other keywords are
        keys of the config's sections `logging` and `server`, such as ``host="127.0.0.1"``; see `appliance schema`.

        Raises:
            ConfigError: one of them is wrong.
        """
        self._server = config_from_keywords(
            ServerConfig, {"port": http_port, "grpc_port": grpc_port, **server}, _SOURCE, "server"
        )
        self._logging = config_from_keywords(LoggingConfig, dict(logging or {}), _SOURCE, "logging")

    def start(self, models: Sequence[BasePythonModel]) -> None:
        """Serve the models until SIGTERM or Ctrl-C, and return when the requests under way are answered.

        A model that is not loaded yet is loaded first, one after the other, while the probes answer already.

        Raises:
            ConfigError: the models cannot be served together.
            SystemExit: the server could not serve; the log says why.
        """
        config = self.config(models)
        _require_main_thread()
        code = serve(LoadedConfig(config), PythonModelFactory(models))
        if code:
            sys.exit(code)

    def config(self, models: Sequence[BasePythonModel]) -> Config:
        """What `start` serves, as the config that a file would become.

        Raises:
            ConfigError: the models cannot be served together.
        """
        problems = [*_wrong(models), *self._too_many_workers()]
        if problems:
            raise ConfigError(problems)
        configs = tuple(PythonModelConfig(name=model.name) for model in models)
        return Config.model_construct(models=configs, server=self._server, logging=self._logging)

    def _too_many_workers(self) -> Iterable[Problem]:
        if self._server.workers not in (1, "auto"):
            yield _problem(
                "server.workers", f"is {self._server.workers}, and loaded models belong to one process; must be 1"
            )


def _wrong(models: Sequence[object]) -> Iterable[Problem]:
    if not models:
        yield _problem("models", "is empty; must have one model or more")
    seen: set[str] = set()
    for index, model in enumerate(models):
        where = f"models[{index}]"
        if not isinstance(model, BasePythonModel):
            hint = ", not the class itself" if isinstance(model, type) else ""
            kind = f"is {model!r}" if isinstance(model, type) else f"is a {type(model).__name__}"
            yield _problem(where, f"{kind}; must be an object of a subclass of appliance.openai's or Model{hint}")
        elif model.name in seen:
            yield _problem(f"{where}.name", f"is {model.name!r}, which is taken; must be unlike all other names")
        else:
            seen.add(model.name)
            yield from _ill_named(model, where)


def _ill_named(model: BasePythonModel, where: str) -> Iterable[Problem]:
    try:
        PythonModelConfig(name=model.name)
    except ValidationError as error:
        yield _problem(f"{where}.name", f"is {model.name!r}; {error.errors()[0]['msg']}")


def _problem(path: str, message: str) -> Problem:
    return Problem(_SOURCE, None, None, path, message)


def _require_main_thread() -> None:
    """Signals go to the main thread alone, and a loop that runs already cannot run another."""
    if threading.current_thread() is not threading.main_thread():
        raise ApplianceError("ModelServer.start() runs in the main thread alone; call it there")
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ApplianceError("ModelServer.start() has an event loop of its own; call it outside of yours")
