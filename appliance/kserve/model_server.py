"""KServe's `ModelServer` and its command line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from appliance.auth.certificates import CertificateError, read
from appliance.config import Config
from appliance.config.server import TlsConfig
from appliance.core.errors import ConfigError, MissingExtraError, Problem
from appliance.kserve.app import app
from appliance.kserve.constants.constants import (
    DEFAULT_GRPC_PORT,
    DEFAULT_HTTP_PORT,
    DEFAULT_HTTPS_PORT,
    KSERVE_TLS_CERT_FILE_ENV,
    KSERVE_TLS_KEY_FILE_ENV,
    MAX_GRPC_MESSAGE_LENGTH,
)
from appliance.kserve.logging import configure_logging
from appliance.kserve.model import Model
from appliance.kserve.model_repository import ModelRepository
from appliance.kserve.predictor_config import PredictorConfig
from appliance.kserve.utils.utils import strtobool
from appliance.python_api.base_model import BasePythonModel
from appliance.server import model_server

__all__ = ["DEFAULT_GRPC_PORT", "DEFAULT_HTTP_PORT", "MAX_GRPC_MESSAGE_LENGTH", "ModelServer", "app", "parser"]

_SOURCE = "ModelServer"

parser = argparse.ArgumentParser(add_help=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
"""KServe's flags, to be a parent of a program's own parser; `ModelServer` reads them from the command line."""

_flag = parser.add_argument
_flag("--http_port", default=DEFAULT_HTTP_PORT, type=int, help="port of HTTP")
_flag("--grpc_port", default=DEFAULT_GRPC_PORT, type=int, help="port of gRPC")
_flag("--workers", default=1, type=int, help="processes; loaded models belong to one")
_flag("--max_threads", default=4, type=int, help="no effect: gRPC is asynchronous, as it is in KServe")
_flag("--max_asyncio_workers", default=None, type=int, help="refused: each call of a plain method has a thread")
_flag("--enable_grpc", default=True, type=strtobool, help="whether to serve gRPC")
_flag("--enable_docs_url", default=False, type=strtobool, help="no effect: /docs is there unless page=False")
_flag("--enable_latency_logging", default=True, type=strtobool, help="whether to log requests with their times")
_flag("--configure_logging", default=True, type=strtobool, help="must be true: the server writes its log")
_flag("--log_config_file", default=None, help="config of Python's logging, for configure_logging()")
_flag("--access_log_format", default=None, help="refused: the log has events with fields")
_flag("--event-loop", dest="event_loop", default="auto", choices=["auto", "asyncio", "uvloop"], help="uvloop")
_flag("--timeout-keep-alive", dest="timeout_keep_alive", default=65, type=int, help="seconds of an idle connection")
_flag("--model_name", default="model", help="name of the model")
_flag("--predictor_host", default=None, help="HOST or HOST:PORT of the predictor behind a transformer")
_flag("--protocol", default="v1", choices=["v1", "v2", "grpc-v2"], help="older name of --predictor_protocol")
_flag("--predictor_protocol", default="v1", choices=["v1", "v2", "grpc-v2"], help="protocol of the predictor")
_flag("--predictor_use_ssl", default=False, type=strtobool, help="whether the predictor has TLS")
_flag("--predictor_request_timeout_seconds", default=600, type=int, help="timeout of a request to the predictor")
_flag("--predictor_request_retries", default=0, type=int, help="retries of a request to the predictor")
_flag("--enable_predictor_health_check", action="store_true", help="ready only while the predictor is")
_flag("--grpc_max_send_message_length", default=MAX_GRPC_MESSAGE_LENGTH, type=int, help="refused: no limit")
_flag("--grpc_max_receive_message_length", default=MAX_GRPC_MESSAGE_LENGTH, type=int, help="refused: max_body_bytes")
_flag("--ssl_certfile", default=os.environ.get(KSERVE_TLS_CERT_FILE_ENV), help="certificate of HTTPS, PEM")
_flag("--ssl_keyfile", default=os.environ.get(KSERVE_TLS_KEY_FILE_ENV), help="its private key, PEM")

_PREDICTOR = {
    "predictor_host": "predictor_host",
    "predictor_protocol": "predictor_protocol",
    "predictor_use_ssl": "predictor_use_ssl",
    "predictor_request_timeout_seconds": "predictor_request_timeout_seconds",
    "predictor_request_retries": "predictor_request_retries",
    "enable_predictor_health_check": "predictor_health_check",
}

# The flags of keys that the server checks.
_KEYS = {
    "server.port": "http_port",
    "server.grpc_port": "grpc_port",
    "server.timeouts.header_seconds": "timeout_keep_alive",
    "server.tls.certificate": "ssl_certfile",
    "server.tls.key": "ssl_keyfile",
}

# The only values of a flag that this server can honour, and what to do instead.
_FIXED: Mapping[str, tuple[tuple[object, ...], str]] = {
    "workers": ((1,), "remove it: loaded models belong to one process; run more copies of the program"),
    "max_asyncio_workers": ((None,), "remove it: each call of a plain method has a thread of its own"),
    "configure_logging": ((True,), "remove it: the server writes its own log"),
    "access_log_format": ((None,), "remove it: the log has an event with fields for each request"),
    "event_loop": (("auto", "uvloop"), "must be auto or uvloop"),
    "grpc_max_send_message_length": ((MAX_GRPC_MESSAGE_LENGTH,), "remove it: responses have no limit"),
    "grpc_max_receive_message_length": ((MAX_GRPC_MESSAGE_LENGTH,), "set max_body_bytes of ModelServer"),
}


class ModelServer(model_server.ModelServer):
    """Serves models as KServe's server does; what is not given comes from the command line."""

    def __init__(
        self,
        http_port: int | None = None,
        grpc_port: int | None = None,
        workers: int | None = None,
        max_threads: int | None = None,
        max_asyncio_workers: int | None = None,
        registered_models: ModelRepository | None = None,
        enable_grpc: bool | None = None,  # noqa: FBT001, RUF100 - KServe's
        enable_docs_url: bool | None = None,  # noqa: FBT001, RUF100 - KServe's
        enable_latency_logging: bool | None = None,  # noqa: FBT001, RUF100 - KServe's
        access_log_format: str | None = None,
        event_loop: str | None = None,
        timeout_keep_alive: int | None = None,
        grace_period: int = 30,
        predictor_config: PredictorConfig | None = None,
        ssl_certfile: str | None = None,
        ssl_keyfile: str | None = None,
        **server: Any,  # Any: checked like the file's
    ) -> None:
        """`grace_period` is the time for requests under way after SIGTERM, in seconds; `server` as in `appliance`.

        Raises:
            ConfigError: one of them is wrong, or cannot be honoured here; it names them all.
            SystemExit: so is a flag of the command line; a line on standard error names it.
        """
        flags = vars(parser.parse_known_args()[0])
        # Parameters have the names of flags.
        given = {name: value for name, value in locals().items() if name in flags and value is not None}
        flags |= given
        self.registered_models = registered_models or ModelRepository()
        self.predictor_config = predictor_config or _predictor_config(flags)
        has_tls = bool(flags["ssl_certfile"] and flags["ssl_keyfile"])
        port = DEFAULT_HTTPS_PORT if has_tls and flags["http_port"] == DEFAULT_HTTP_PORT else flags["http_port"]
        keys = {
            "workers": flags["workers"],
            "drain_seconds": grace_period,
            "timeouts": {"header_seconds": flags["timeout_keep_alive"]},
            **({"tls": {"certificate": flags["ssl_certfile"], "key": flags["ssl_keyfile"]}} if has_tls else {}),
            **({"cors": {"origins": app.cors_origins}} if app.cors_origins else {}),
        }
        with _refused_flags(given):
            _require_possible(flags)
            _configure_logging(flags["log_config_file"])
            if has_tls:
                _require_certificate(flags)
            grpc = flags["grpc_port"] if flags["enable_grpc"] else None
            logging = {} if flags["enable_latency_logging"] else {"access": {"sample": 0}}
            super().__init__(port, grpc, logging=logging, **{**keys, **server})

    def register_model(self, model: BasePythonModel, name: str | None = None) -> None:
        """Serve a model, also under another name than its own."""
        self.registered_models.update(model, name)

    def start(self, models: Sequence[BasePythonModel]) -> None:
        """Serve these models and the registered ones until SIGTERM or Ctrl-C; see `appliance.ModelServer`."""
        served = self._with_registered(models)
        for model in served:
            if isinstance(model, Model) and model.predictor_config is None:
                model.predictor_config = self.predictor_config
        super().start(served)

    def config(self, models: Sequence[BasePythonModel]) -> Config:
        """What `start` serves, as the config that a file would become; see `appliance.ModelServer`."""
        config, registered = super().config(self._with_registered(models)), self.registered_models.get_models()
        aliases = {
            model.name: tuple(name for name, each in registered.items() if each is model and name != model.name)
            for model in registered.values()
        }
        named = [each.model_copy(update={"aliases": aliases.get(each.name, ())}) for each in config.models]
        return config.model_copy(update={"models": tuple(named)})

    def _with_registered(self, models: Sequence[BasePythonModel]) -> Sequence[BasePythonModel]:
        every = [*models, *self.registered_models.get_models().values()]
        return list({id(model): model for model in every}.values())


@contextmanager
def _refused_flags(given: Collection[str]) -> Iterator[None]:
    """End the program with a line for each problem of a flag, as argparse does, unless an argument was `given` for it.

    Raises:
        ConfigError: there are only problems of others.
    """
    try:
        yield
    except ConfigError as error:
        named = [(_KEYS.get(problem.path, problem.path), problem.message) for problem in error.problems]
        options = {action.dest: action.option_strings[0] for action in parser._actions}
        lines = [
            f"{parser.prog}: {options[name]}: {message}\n"
            for name, message in named
            if name in options and name not in given
        ]
        if not lines:
            raise
        parser.exit(2, "".join(lines))


def _configure_logging(file: str | None) -> None:
    if not file:
        return
    try:
        configure_logging(file)
    except Exception as error:
        # Of any class: the file may name code of anyone's.
        reason = " ".join(str(error).split())
        message = f"is {file!r}, which is no config of Python's logging: {reason}; correct the file or remove the flag"
        raise ConfigError([Problem(_SOURCE, None, None, "log_config_file", message)]) from error


def _require_possible(flags: Mapping[str, Any]) -> None:  # Any: values of flags
    problems = [
        Problem(_SOURCE, None, None, name, f"is {flags[name]!r}; {remedy}")
        for name, (possible, remedy) in _FIXED.items()
        if flags[name] not in possible
    ]
    if bool(flags["ssl_certfile"]) != bool(flags["ssl_keyfile"]):
        message = "needs the other one of ssl_certfile and ssl_keyfile; give both"
        problems.append(
            Problem(_SOURCE, None, None, "ssl_certfile" if flags["ssl_certfile"] else "ssl_keyfile", message)
        )
    if problems:
        raise ConfigError(problems)


def _require_certificate(flags: Mapping[str, Any]) -> None:  # Any: values of flags
    try:
        read(TlsConfig(certificate=flags["ssl_certfile"], key=flags["ssl_keyfile"]))
    except CertificateError as error:
        raise ConfigError([Problem(_SOURCE, None, None, error.key, error.fault)]) from error
    except MissingExtraError:
        # The start of the server ends with it.
        return


def _predictor_config(flags: Mapping[str, Any]) -> PredictorConfig:  # Any: values of flags
    values = {ours: flags[name] for name, ours in _PREDICTOR.items()}
    if flags["predictor_protocol"] == "v1":
        values["predictor_protocol"] = flags["protocol"]
    return PredictorConfig(**values)
