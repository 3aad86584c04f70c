"""References in values: ``${env:NAME}``, ``${env:NAME:-default}`` and ``${file:/path}``; ``$${`` is a plain ``${``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from appliance.config.base import FREE_PREFIX
from appliance.config.masking import is_secret
from appliance.config.raw_config import UNKNOWN, DataPath, RawConfig, reason_of, scalars, with_value

_NAME = "[A-Za-z_][A-Za-z0-9_]*"
_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<inside>[^}]*)(?P<end>\}?)")
_ENV = re.compile(rf"env:(?P<name>{_NAME})(?P<default>:-.*)?", re.DOTALL)
_REMEDY = "must be ${env:NAME}, ${env:NAME:-default} or ${file:/path}, or $${ for a plain ${"

PATTERN = rf"\$\{{(env:{_NAME}(:-[^}}]*)?|file:[^}}]+)\}}"
"""A text with a reference in it, as a regular expression of JSON Schema."""

# Enough for a token or a certificate.
_MAX_BYTES = 1024 * 1024


class _ReferenceError(Exception):
    """A reference has no value; its text is the message."""

    def __init__(self, message: str, *, is_unresolved: bool = True) -> None:
        super().__init__(message)
        self.is_unresolved = is_unresolved


def resolve(raw: RawConfig, environ: Mapping[str, str], directory: Path) -> RawConfig:
    """Replace the references in all values but those under free keys; relative paths of files start at `directory`."""
    texts: dict[DataPath, frozenset[str]] = {}
    files = dict(raw.files)
    errors = list(raw.errors)
    data = raw.data
    for path, text in scalars(raw.data):
        if not isinstance(text, str) or "${" not in text or any(str(part).startswith(FREE_PREFIX) for part in path):
            continue
        resolver = _Resolver(environ, directory, may_have_default=not is_secret(path))
        try:
            data = with_value(data, path, _REFERENCE.sub(resolver.replacement, text))
            texts[path] = frozenset(resolver.secrets)
            files |= resolver.files
        except _ReferenceError as error:
            data = with_value(data, path, UNKNOWN)
            errors.append(replace(raw.diagnostic(path, str(error)), is_unresolved=error.is_unresolved))
    return replace(raw, data=data, texts=texts, files=files, errors=errors)


def variables(raw: RawConfig) -> Mapping[str, bool]:
    """The environment variables that values refer to, and whether each must be set: a default stands for others."""
    found: dict[str, bool] = {}
    for path, text in scalars(raw.data):
        if not isinstance(text, str) or any(str(part).startswith(FREE_PREFIX) for part in path):
            continue
        for match in _REFERENCE.finditer(text):
            env = _ENV.fullmatch(match["inside"] or "")
            if env is not None:
                found[env["name"]] = found.get(env["name"], False) or env["default"] is None
    return found


@dataclass(slots=True)
class _Resolver:
    """Replaces the references of one text; remembers the secrets and files behind them."""

    environ: Mapping[str, str]
    directory: Path
    may_have_default: bool
    """Whether the value is no secret, so that a default in the file is good advice."""
    secrets: set[str] = field(default_factory=set)
    files: dict[Path, str] = field(default_factory=dict)

    def replacement(self, match: re.Match[str]) -> str:
        """The text for one reference.

        Raises:
            _ReferenceError: it has an unknown form, its variable is not set, or its file cannot be read.
        """
        if match["inside"] is None:
            return "${"
        if not match["end"]:
            raise _ReferenceError(f"has a reference without its end; {_REMEDY}", is_unresolved=False)
        if match["inside"].startswith("file:"):
            path = self.directory / match["inside"].removeprefix("file:")
            content = _read(path)
            self.files[path] = sha256(content).hexdigest()
            return self._secret(content.rstrip(b"\r\n"), f"the file {path}")
        env = _ENV.fullmatch(match["inside"])
        if env is None:
            raise _ReferenceError(f"has an unknown reference; {_REMEDY}", is_unresolved=False)
        name, default = env["name"], env["default"]
        # As in a shell, `:-` replaces an empty variable too.
        if default is not None and not self.environ.get(name):
            return str(default).removeprefix(":-")
        if name not in self.environ:
            remedy = f"set it, or write ${{env:{name}:-default}}" if self.may_have_default else "set it"
            raise _ReferenceError(f"the environment variable {name} is not set; {remedy}")
        return self._secret(self.environ[name].encode("utf-8", "surrogateescape"), f"the environment variable {name}")

    def _secret(self, content: bytes, name: str) -> str:
        try:
            value = content.decode("utf-8")
        except UnicodeDecodeError:
            raise _ReferenceError(f"{name} does not hold UTF-8 text; must be UTF-8") from None
        self.secrets |= {value} - {""}
        return value


def _read(path: Path) -> bytes:
    name = f"the file {path}"
    try:
        # Reading a pipe or a device could wait forever.
        if path.exists() and not path.is_file():
            raise _ReferenceError(f"{name} is not a regular file; must be one that holds text")
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise _ReferenceError(f"{name} cannot be read: {reason_of(error)}; must be a readable file") from None
    if len(content) > _MAX_BYTES:
        raise _ReferenceError(f"{name} is larger than {_MAX_BYTES} bytes; must be a short text")
    return content
