"""KServe's errors; a model that raises one decides the status of the response, and clients see its text."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.core.errors import ApplianceError, RequestError, UnavailableError, UnknownModelError
from appliance.python_api.base_model import BasePythonModel


class ModelMissingError(ApplianceError):
    """The files of a model are missing."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class InferenceError(RequestError, RuntimeError):
    """The inference failed: 500. KServe's `status` is a word before the text; the attribute is the HTTP status."""

    status = 500

    def __init__(self, reason: str, status: str | None = None, debug_details: object = None) -> None:
        super().__init__(reason if status is None else f"[{status}] {reason}")
        self.reason = reason
        self.debug_details = debug_details


class InvalidInput(RequestError, ValueError):  # noqa: N818 - KServe's
    """The input is invalid: 400."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ModelNotFound(UnknownModelError):  # noqa: N818 - KServe's
    """No model has this name: 404."""

    def __init__(self, model_name: str | None = None) -> None:
        self.reason = f"Model with name {model_name} does not exist."
        super().__init__(self.reason)


class ModelNotReady(UnavailableError, RuntimeError):  # noqa: N818 - KServe's
    """The model is not ready: 503."""

    def __init__(self, model_name: str, detail: str | None = None) -> None:
        self.model_name = model_name
        self.error_msg = _with_detail(f"Model with name {model_name} is not ready.", detail)
        super().__init__(self.error_msg)


class NoModelReady(ApplianceError, RuntimeError):  # noqa: N818 - KServe's
    """No model of a server is ready."""

    def __init__(self, models: Sequence[BasePythonModel], detail: str | None = None) -> None:
        self.models = models
        self.detail = detail
        names = ",".join(model.name for model in models)
        text = f"Model with name {names} is" if len(models) == 1 else f"Models with names {names} are"
        super().__init__(_with_detail(f"{text} not ready.", detail))


class UnsupportedProtocol(RequestError):  # noqa: N818 - KServe's
    """The protocol is not supported: 501."""

    status = 501

    def __init__(self, protocol_version: object = None) -> None:
        self.reason = f"Unsupported protocol {protocol_version}."
        super().__init__(self.reason)


class ServerNotReady(UnavailableError, RuntimeError):  # noqa: N818 - KServe's
    """The server is not ready: 503."""

    def __init__(self, detail: str | None = None) -> None:
        self.error_msg = _with_detail("Server is not ready.", detail)
        super().__init__(self.error_msg)


class ServerNotLive(UnavailableError, RuntimeError):  # noqa: N818 - KServe's
    """The server is not live: 503."""

    def __init__(self, detail: str | None = None) -> None:
        self.error_msg = _with_detail("Server is not live.", detail)
        super().__init__(self.error_msg)


def _with_detail(text: str, detail: str | None) -> str:
    return f"{text} {detail}" if detail else text
