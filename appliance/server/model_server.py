"""Serving models from a Python program: the same server that `appliance serve` runs, without a file."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
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
        # Signals go to the main thread alone, and a loop that runs already cannot run another.
        if threading.current_thread() is not threading.main_thread():
            raise ApplianceError("ModelServer.start() runs in the main thread alone; call it there")
        with suppress(RuntimeError):
            asyncio.get_running_loop()
            raise ApplianceError("ModelServer.start() has an event loop of its own; call it outside of yours")
        if code := serve(LoadedConfig(config), PythonModelFactory(models)):
            sys.exit(code)

    def config(self, models: Sequence[BasePythonModel]) -> Config:
        """What `start` serves, as the config that a file would become.

        Raises:
            ConfigError: the models cannot be served together.
        """
        problems = [Problem(_SOURCE, None, None, path, message) for path, message in self._problems(models)]
        if problems:
            raise ConfigError(problems)
        configs = tuple(PythonModelConfig(name=model.name) for model in models)
        return Config.model_construct(models=configs, server=self._server, logging=self._logging)

    def _problems(self, models: Sequence[object]) -> Iterable[tuple[str, str]]:
        """Yield a path and a message for each problem."""
        if not models:
            yield "models", "is empty; must have one model or more"
        seen: set[str] = set()
        for index, model in enumerate(models):
            if not isinstance(model, BasePythonModel):
                hint = ", not the class itself" if isinstance(model, type) else ""
                kind = f"is {model!r}" if isinstance(model, type) else f"is a {type(model).__name__}"
                yield (
                    f"models[{index}]",
                    f"{kind}; must be an object of a subclass of appliance.openai's or Model{hint}",
                )
                continue
            name = f"models[{index}].name"
            if model.name in seen:
                yield name, f"is {model.name!r}, which is taken; must be unlike all other names"
                continue
            seen.add(model.name)
            try:
                PythonModelConfig(name=model.name)
            except ValidationError as error:
                yield name, f"is {model.name!r}; {error.errors()[0]['msg']}"
        workers = self._server.workers
        if workers not in (1, "auto"):
            yield "server.workers", f"is {workers}, and loaded models belong to one process; must be 1"
