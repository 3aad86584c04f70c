"""References in values: ``${env:NAME}``, ``${env:NAME:-default}`` and ``${file:/path}``; ``$${`` is a plain ``${``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from appliance.config.base import FREE_PREFIX
from appliance.config.raw_config import UNKNOWN, RawConfig
from appliance.config.source_location import DataPath, Diagnostic

_NAME = "[A-Za-z_][A-Za-z0-9_]*"
_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<inside>[^}]*)(?P<end>\}?)")
_ENV = re.compile(rf"env:(?P<name>{_NAME})(?P<default>:-.*)?", re.DOTALL)
_REMEDY = "must be ${env:NAME}, ${env:NAME:-default} or ${file:/path}, or $${ for a plain ${"

PATTERN = rf"\$\{{(env:{_NAME}(:-[^}}]*)?|file:[^}}]+)\}}"
"""A text with a reference in it, as a regular expression of JSON Schema."""

# Enough for a token or a certificate.
_MAX_BYTES = 1024 * 1024


@dataclass(slots=True)
class Interpolation:
    """The result of resolving references."""

    raw: RawConfig
    errors: list[Diagnostic] = field(default_factory=list)
    """References that are malformed."""

    unresolved: list[Diagnostic] = field(default_factory=list)
    """References to a variable or a file that cannot be read; their values are UNKNOWN."""


class _MalformedError(Exception):
    """A reference has an unknown form; its text is the message."""


class _UnresolvedError(Exception):
    """A reference leads nowhere; its text is the message."""


def resolve(raw: RawConfig, environ: Mapping[str, str], directory: Path) -> Interpolation:
    """Replace the references in all values but those under free keys.

    Relative paths of files start at `directory`.
    """
    result = Interpolation(raw)
    texts: dict[DataPath, frozenset[str]] = {}
    files = dict(raw.files)

    def walk(value: Any, path: DataPath) -> Any:  # Any: what a file holds before it is checked
        if isinstance(value, dict):
            return {
                key: item if key.startswith(FREE_PREFIX) else walk(item, (*path, key)) for key, item in value.items()
            }
        if isinstance(value, list):
            return [walk(item, (*path, index)) for index, item in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        resolver = _Resolver(environ, directory)
        try:
            resolved = _REFERENCE.sub(resolver.replacement, value)
        except _MalformedError as error:
            result.errors.append(raw.diagnostic(path, str(error)))
            return UNKNOWN
        except _UnresolvedError as error:
            result.unresolved.append(raw.diagnostic(path, str(error)))
            return UNKNOWN
        texts[path] = frozenset(resolver.secrets)
        files.update(resolver.files)
        return resolved

    result.raw = replace(raw, data=walk(raw.data, ()), texts=texts, files=files)
    return result


@dataclass(slots=True)
class _Resolver:
    """Replaces the references of one text; remembers the secrets and files behind them."""

    environ: Mapping[str, str]
    directory: Path
    secrets: set[str] = field(default_factory=set)
    files: dict[Path, str] = field(default_factory=dict)

    def replacement(self, match: re.Match[str]) -> str:
        """The text for one reference.

        Raises:
            _MalformedError: it has an unknown form.
            _UnresolvedError: its variable is not set, or its file cannot be read.
        """
        if match["inside"] is None:
            return "${"
        if not match["end"]:
            raise _MalformedError(f"has a reference without its end; {_REMEDY}")
        if match["inside"].startswith("file:"):
            path = self.directory / match["inside"].removeprefix("file:")
            content = _read(path)
            self.files[path] = sha256(content).hexdigest()
            return self._secret(_decode(content, f"the file {path}").rstrip("\r\n"))
        env = _ENV.fullmatch(match["inside"])
        if env is None:
            raise _MalformedError(f"has an unknown reference; {_REMEDY}")
        # As in a shell, `:-` replaces an empty variable too.
        if env["default"] is not None and not self.environ.get(env["name"]):
            return env["default"].removeprefix(":-")
        return self._secret(_variable(self.environ, env["name"]))

    def _secret(self, value: str) -> str:
        self.secrets |= {value} - {""}
        return value


def _variable(environ: Mapping[str, str], name: str) -> str:
    if name not in environ:
        raise _UnresolvedError(f"the environment variable {name} is not set; set it, or write ${{env:{name}:-default}}")
    return _decode(environ[name].encode("utf-8", "surrogateescape"), f"the environment variable {name}")


def _read(path: Path) -> bytes:
    name = f"the file {path}"
    try:
        # Reading a pipe or a device could wait forever.
        if path.exists() and not path.is_file():
            raise _UnresolvedError(f"{name} is not a regular file; must be one that holds text")
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _UnresolvedError(f"{name} cannot be read: {reason}; must be a readable file") from None
    if len(content) > _MAX_BYTES:
        raise _UnresolvedError(f"{name} is larger than {_MAX_BYTES} bytes; must be a short text")
    return content


def _decode(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise _UnresolvedError(f"{name} does not hold UTF-8 text; must be UTF-8") from None
