"""Logins to container registries: of the config, or of the files and helpers that docker and podman use."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.config.credentials import OciCredentialsConfig, value_of
from appliance.core.errors import StorageError
from appliance.storage import bounded_json
from appliance.storage.filesystems import network

REMEDY = "log in with docker login, or set storage.credentials.oci to a valid user and password"

DOCKER_HUB = "docker.io"

# Docker's own key for its hub, from its first protocol.
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_DOCKER_HUB_HOSTS = frozenset({"index.docker.io", "registry-1.docker.io"})

_MAX_CONFIG_BYTES = 1 << 20
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HELPER_SECONDS = 30


@dataclass(frozen=True, slots=True)
class OciLogin:
    """A credential of a registry: a user with a password, a token to exchange, or a token to send."""

    description: str = "anonymous"
    user: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an Authorization header with user and password, "" without them."""
        return network.basic_login(self.user, self.password) if self.user else ""


def find_login(
    registry: str, name: str, block: OciCredentialsConfig | None, environ: Mapping[str, str] = os.environ
) -> OciLogin:
    """Return the login of the config, or else that of docker or podman for a repository of a registry."""
    if block and block.anonymous:
        return OciLogin()
    if block and block.username:
        return OciLogin("username of storage.credentials.oci", block.username, value_of(block.password) or "")
    reasons = []
    for path in _config_files(environ):
        found = _login_of_file(path, registry, name)
        if isinstance(found, OciLogin):
            return found
        reasons += [found] if found else []
    return OciLogin(f"anonymous, as {reasons[0]}") if reasons else OciLogin()


def _config_files(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield the files of docker and podman (containers-auth.json(5)), in the order in which they count."""
    if "REGISTRY_AUTH_FILE" in environ:
        yield Path(environ["REGISTRY_AUTH_FILE"])
    yield Path(environ.get("DOCKER_CONFIG") or "~/.docker").expanduser() / "config.json"
    if "XDG_RUNTIME_DIR" in environ:
        yield Path(environ["XDG_RUNTIME_DIR"]) / "containers/auth.json"
    yield Path(environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "containers/auth.json"


def _login_of_file(path: Path, registry: str, name: str) -> OciLogin | str | None:
    """Return the login in a file, why the file's helper has none, or None if the file does not know the registry."""
    try:
        config = bounded_json.read(path, _MAX_CONFIG_BYTES)
        helper = config.get("credHelpers", {}).get(registry)
        entries = {_repository_of(key): entry for key, entry in config.get("auths", {}).items()}
        parts = f"{registry}/{name}".split("/")
        keys = ("/".join(parts[:length]) for length in range(len(parts), 0, -1))
        entry = next((entries[key] for key in keys if entries.get(key)), None)
        if not helper and entry and (found := _login_of_entry(entry, str(path))):
            return found
        helper = helper or config.get("credsStore")
        return _ask_helper(helper, registry) if helper else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; change its owner or mode") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StorageError(f"{path}: not a config of docker ({type(error).__name__}); log in again") from error


def _repository_of(key: str) -> str:
    """Return the registry, or repository, that a key names: `https://ghcr.io/v1/` is `ghcr.io`."""
    plain = re.sub(r"^https?://", "", key)
    plain = re.sub(r"(?:/v[12])?/?$", "", plain)
    host, slash, path = plain.partition("/")
    return f"{DOCKER_HUB if host in _DOCKER_HUB_HOSTS else host}{slash}{path}"


def _login_of_entry(entry: Mapping[str, Any], source: str) -> OciLogin | None:  # Any: JSON values
    user, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if auth := entry.get("auth"):
        user, _, password = base64.b64decode(auth, validate=True).decode().partition(":")
    tokens = str(entry.get("identitytoken") or ""), str(entry.get("registrytoken") or "")
    # `docker login` leaves an empty entry where a helper has the password.
    return OciLogin(source, user, password.rstrip("\0"), *tokens) if user or any(tokens) else None


def _ask_helper(helper: str, registry: str) -> OciLogin | str:
    """https://github.com/docker/docker-credential-helpers: the program gets the registry, and writes a login."""
    if not _HELPER_NAME.fullmatch(helper):
        raise ValueError("helper")
    program = f"docker-credential-{helper}"
    server = _DOCKER_HUB_KEY if registry == DOCKER_HUB else registry
    try:
        done = subprocess.run(  # noqa: S603 - the user's own config names the program
            [program, "get"], input=server, capture_output=True, text=True, timeout=_HELPER_SECONDS, check=False
        )
    except (FileNotFoundError, PermissionError):
        return f"{program} is not installed"
    except subprocess.TimeoutExpired:
        return f"{program} did not answer within {_HELPER_SECONDS} seconds"
    if done.returncode:
        return f"{program} has no login for it"
    found = json.loads(done.stdout)
    user, secret = str(found["Username"]), str(found["Secret"])
    # The helpers' mark for a token that takes the place of a password.
    return OciLogin(program, identity_token=secret) if user == "<token>" else OciLogin(program, user, secret)
