"""Where all models stand together: what the probes are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from appliance.models.state import State


@dataclass(frozen=True, slots=True)
class ConfigStatus:
    """Which file is served, and what became of a newer one."""

    digest: str
    """SHA-256 of the file that is served."""

    loaded_at: str
    """When all of it was served, in ISO 8601."""

    error: str | None = None
    """What is wrong with the file as it is now; None where nothing is."""

    waiting: Sequence[str] = ()
    """The keys that need a restart, for which the file as it is now is not served."""


@dataclass(frozen=True, slots=True)
class HealthReport:
    """Answers to the probes, and the models behind them."""

    is_live: bool
    """No model is beyond help."""

    is_ready: bool
    """Every model answers."""

    has_started: bool
    """Every model has been ready once."""

    retry_after: int
    """Seconds after which asking again makes sense."""

    models: Sequence[Mapping[str, Any]]  # Any: JSON values
    """Each model as probes show it."""

    workers: Sequence[Mapping[str, Any]] = ()  # Any: JSON values
    """Each worker as probes show it; empty where there is one."""

    config: Mapping[str, Any] | None = None  # Any: JSON values
    """The file as probes show it, with the models that it is bringing; None where there is none."""

    reason: str | None = None
    """Why it is not well, where that is no model's doing; None where it is."""


# In these states the reason is an error, of our own code, of the engine's or of the user's: it can quote files,
# addresses and whatever an exception says.
_FAULTS: Mapping[str, str] = {
    State.FAILED: "it failed; the log says why",
    State.RESTARTING: "it failed, and is started again; the log says why",
}


def public_reason(state: str, reason: str) -> str:
    """Why a model is in its state, for those who do not run the server: never the text of an error.

    A reason that has such a text has it after ", because ".
    """
    said, because, _ = reason.partition(", because ")
    return _FAULTS.get(state) or (f"{said}; the log says why" if because else said)


def public(standing: HealthReport) -> HealthReport:
    """The same for those who do not run the server."""
    config = standing.config
    if config is not None:
        error = None if config["error"] is None else "the file is wrong; the log says why"
        config = {**config, "error": error, "coming": [_public_model(each) for each in config["coming"]]}
    return replace(standing, models=[_public_model(each) for each in standing.models], config=config)


def _public_model(model: Mapping[str, Any]) -> Mapping[str, Any]:  # Any: JSON values
    shown = {**model, "reason": public_reason(model["state"], model["reason"])}
    if "upstreams" in model:
        shown["upstreams"] = [_public_upstream(each) for each in model["upstreams"]]
    if "nodes" in model:
        shown["nodes"] = dict.fromkeys(model["nodes"], "the log says how it is")
    return shown


def _public_upstream(upstream: Mapping[str, Any]) -> Mapping[str, Any]:  # Any: JSON values
    """Without its address; what else there is of it depends on the class of the model."""
    shown = {key: value for key, value in upstream.items() if key != "name"}
    if "reason" in shown:
        shown["reason"] = None if shown.get("available") else "the log says why"
    return shown
