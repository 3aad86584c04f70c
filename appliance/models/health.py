"""The health of a server: what its probes report, and how much of it to whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from appliance.models.state import State


@dataclass(frozen=True, slots=True)
class ConfigStatus:
    """The config file that is served, and what is wrong with a newer one."""

    digest: str
    """SHA-256 of the file that is served."""
    loaded_at: str
    """When it was applied, in ISO 8601."""
    error: str | None = None
    """What is wrong with the file as it is now; None if nothing is."""
    restart_required: Sequence[str] = ()
    """The changed keys that need a restart; because of them the file as it is now is not applied."""


class ModelReport(TypedDict, total=False):
    """One model in the body of a probe."""

    name: str
    """Its name in the config."""
    state: str
    """Its state."""
    since: str
    """When it entered the state, in ISO 8601."""
    reason: str
    """Why it is in the state."""
    running: int
    """Requests that it works on."""
    queued: int
    """Requests that wait for their turn."""
    restarts: int
    """How often it was restarted because it died."""
    layout: Any  # Any: JSON
    """Its `layout` in the config, without defaults; only for models of this machine."""
    progress: Mapping[str, Any]  # Any: JSON values
    """In `fetching`: bytes so far and in total, rate and remaining time."""
    load: Mapping[str, Any]  # Any: JSON values
    """Seconds of the latest load, by `phases` (states) and by `parts` of loading; only for models of this machine."""
    plan: Mapping[str, Any]  # Any: JSON values
    """Bytes of weights, KV cache and seconds, `planned` and `measured`; only with a plan."""
    fallback: Sequence[Mapping[str, Any]]  # Any: JSON values
    """Each model that answers while this one is unavailable, and whether it is ready; only with such a fallback."""
    nodes: Mapping[str, str]
    """State of each machine of the model by its rank; only for a model on several machines."""
    upstreams: Sequence[Mapping[str, Any]]  # Any: JSON values
    """Each upstream or target: its name, whether it is available, and why not; only for proxies and adapters."""


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The answers to the probes, and the models behind them."""

    is_live: bool
    """No model has failed for good."""
    is_ready: bool
    """Every model answers."""
    has_started: bool
    """Every model has been ready once."""
    retry_after: int
    """Seconds after which a client should try again."""
    models: Sequence[Mapping[str, Any]]  # Any: JSON values
    """Each model as probes show it."""
    workers: Sequence[Mapping[str, Any]] = ()  # Any: JSON values
    """Each worker as probes show it; empty if there is only one process."""
    config: Mapping[str, Any] | None = None  # Any: JSON values
    """The config file as probes show it, with the models that it adds; None without a file."""
    reason: str | None = None
    """Why the server is not healthy, if no model is the cause."""


# In these states the reason is the text of an error, which may quote files, addresses and anything else.
_ERROR_STATES = frozenset({State.FAILED, State.RESTARTING})


def public_reason(state: str, reason: str) -> str:
    """Return why a model is in its state, for clients: without the text of an error, which follows ", because "."""
    if state in _ERROR_STATES:
        return "see the log"
    text, because, _ = reason.partition(", because ")
    return f"{text}; see the log" if because else text


def public(report: HealthReport) -> HealthReport:
    """Return the report for clients that are not operators: without the texts of errors and addresses."""
    config = report.config
    if config is not None:
        error = None if config["error"] is None else "the file is wrong; see the log"
        config = {**config, "error": error, "new_models": [_public_model(model) for model in config["new_models"]]}
    return replace(report, models=[_public_model(model) for model in report.models], config=config)


def _public_model(model: Mapping[str, Any]) -> Mapping[str, Any]:  # Any: JSON values
    shown = {**model, "reason": public_reason(model["state"], model["reason"])}
    if "upstreams" in model:
        # Without addresses; the other keys depend on the model class.
        shown["upstreams"] = [
            {
                key: (None if each.get("available") else "see the log") if key == "reason" else value
                for key, value in each.items()
                if key != "name"
            }
            for each in model["upstreams"]
        ]
    if "nodes" in model:
        shown["nodes"] = dict.fromkeys(model["nodes"], "see the log")
    return shown
