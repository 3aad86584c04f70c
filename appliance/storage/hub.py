"""
Ask a hub through huggingface_hub, which knows the user's token, endpoint, proxy and certificates.

It works in a child: a stop ends it at once, its threads and memory stay out of the server, and so does the server's
own setting that nothing may be fetched behind its back.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from appliance.errors import (
    AccessDeniedError,
    ArtifactCorruptError,
    ArtifactNotFoundError,
    MissingExtraError,
    StorageError,
    StorageUnavailableError,
)
from appliance.storage import child
from appliance.storage.cache import Report
from appliance.storage.progress import Progress
from appliance.storage.uri import redact

_ENVIRONMENT = {
    # Whoever writes hf:// wants it fetched; TRANSFORMERS_OFFLINE still says no.
    "HF_HUB_OFFLINE": "",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONIOENCODING": "utf-8",
}

_ERRORS: Mapping[str, type[StorageError]] = {
    error.__name__: error
    for error in (
        StorageError,
        AccessDeniedError,
        ArtifactCorruptError,
        ArtifactNotFoundError,
        StorageUnavailableError,
    )
}


def resolve(what: str, name: str, revision: str, tick: Callable[[], None]) -> str:
    """
    The commit that a revision of a model means now; `what` names it in messages.

    Raises:
        ArtifactNotFoundError: there is no such model, or no such revision of it.
        AccessDeniedError: the hub wants another token.
        StorageUnavailableError: the hub does not answer.
    """
    return _ask(["resolve", what, name, revision], lambda _: tick())


def download(what: str, name: str, commit: str, path: str, target: Path, report: Report) -> None:
    """
    Fill the empty directory `target` with a file or directory of a model, verified.

    Raises:
        ArtifactCorruptError: what came is not what the hub lists.
        ArtifactNotFoundError, AccessDeniedError, StorageUnavailableError: as in `resolve`.
    """
    _ask(["download", what, name, commit, path, str(target)], Progress(report))


def _ask(arguments: list[str], heard: Callable[[str], None]) -> str:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise MissingExtraError("huggingface_hub", "hf", "Fetching hf://")
    what = arguments[1]
    # -P keeps a huggingface_hub.py in the current directory from being taken for it.
    ended = child.run([sys.executable, "-P", "-m", "appliance.storage.hub_client", *arguments], _ENVIRONMENT, heard)
    answer = next(filter(None, map(_answer, reversed(ended.lines))), {})
    if error := _ERRORS.get(answer.get("error", "")):
        raise error(answer["message"])
    if ended.status < 0:
        raise StorageError(
            f"{what}: its download was killed by signal {-ended.status}; most often memory ran out: "
            "give this machine or container more of it"
        )
    if "result" not in answer:
        last = " / ".join(map(redact, ended.lines[-3:])) or "it said nothing"
        raise StorageError(f"{what}: huggingface_hub ended with status {ended.status}: {last}")
    return answer["result"]


def _answer(line: str) -> Mapping[str, str]:
    """
    The line as an answer of `hub_client`, empty where it is none.
    """
    try:
        answer = json.loads(line) if line.startswith("{") else {}
    except ValueError:
        return {}
    return answer if answer.keys() & {"result", "error"} else {}
