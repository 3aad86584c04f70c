"""References in strings: ``${env:NAME}``, ``${env:NAME:-default}`` and ``${file:/path}``; ``$${`` is a plain ``${``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from appliance.config.base import FREE_PREFIX
from appliance.config.raw_config import RawConfig
from appliance.config.source_location import DataPath, Diagnostic

_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<inside>[^}]*)(?P<end>\}?)")
_ENV = re.compile(r"env:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-.*)?", re.DOTALL)
_KINDS = "must be ${env:NAME}, ${env:NAME:-default} or ${file:/path}, or $${ for a plain ${"

# A token or a certificate, not a model: what is larger is a mistake.
_MAX_BYTES = 1024 * 1024


class _UnresolvedError(Exception):
    """A reference leads nowhere; its text is the message."""


@dataclass(slots=True)
class _Text:
    """One string while its references are replaced."""

    environ: Mapping[str, str]
    directory: Path
    secrets: set[str] = field(default_factory=set)
    files: dict[Path, str] = field(default_factory=dict)

    def resolve(self, match: re.Match[str]) -> str:
        if match["inside"] is None:
            return "${"
        if not match["end"]:
            raise _UnresolvedError(f"has a reference without its end; {_KINDS}")
        if match["inside"].startswith("file:"):
            path = self.directory / match["inside"].removeprefix("file:")
            raw = _file_bytes(path)
            self.files[path] = sha256(raw).hexdigest()
            return self._secret(_checked(raw, f"the file {path}").rstrip("\r\n"))
        env = _ENV.fullmatch(match["inside"])
        if env is None:
            raise _UnresolvedError(f"has an unknown reference; {_KINDS}")
        # As in a shell, `:-` stands in for an empty variable too.
        if env["default"] is not None and not self.environ.get(env["name"]):
            return env["default"].removeprefix(":-")
        return self._secret(_env_value(self.environ, env["name"]))

    def _secret(self, value: str) -> str:
        self.secrets |= {value} - {""}
        return value


def resolve(draft: RawConfig, environ: Mapping[str, str], directory: Path) -> tuple[RawConfig, list[Diagnostic]]:
    """The draft with its references replaced, and a fault for each that leads nowhere.

    Relative paths of files start at `directory`. What stands under a free key is left alone.
    """
    texts: dict[DataPath, frozenset[str]] = {}
    files = dict(draft.files)
    faults: list[Diagnostic] = []

    def walk(value: Any, path: DataPath) -> Any:  # Any: what a file holds before it is checked
        if isinstance(value, dict):
            return {key: item if _is_free(key) else walk(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, (*path, index)) for index, item in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        text = _Text(environ, directory)
        try:
            replaced = _REFERENCE.sub(text.resolve, value)
        except _UnresolvedError as unresolved:
            faults.append(draft.fault(path, str(unresolved)))
            return value
        texts[path] = frozenset(text.secrets)
        files.update(text.files)
        return replaced

    return replace(draft, data=walk(draft.data, ()), texts=texts, files=files), faults


def _is_free(key: str) -> bool:
    return key.startswith(FREE_PREFIX)


def _env_value(environ: Mapping[str, str], name: str) -> str:
    if name not in environ:
        raise _UnresolvedError(f"the environment variable {name} is not set; set it, or write ${{env:{name}:-default}}")
    return _checked(environ[name].encode("utf-8", "surrogateescape"), f"the environment variable {name}")


def _file_bytes(path: Path) -> bytes:
    name = f"the file {path}"
    try:
        # A pipe or a device could keep us waiting for ever.
        if path.exists() and not path.is_file():
            raise _UnresolvedError(f"{name} is not a regular file; must be one that holds text")
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _UnresolvedError(f"{name} cannot be read: {reason}; must be a readable file") from None
    if len(raw) > _MAX_BYTES:
        raise _UnresolvedError(f"{name} is larger than {_MAX_BYTES} bytes; must be a short text")
    return raw


def _checked(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _UnresolvedError(f"{name} does not hold UTF-8 text; must be UTF-8") from None
