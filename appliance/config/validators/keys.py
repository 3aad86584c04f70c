"""Rules about who may ask: keys are apart, lead somewhere, and stand before what is dangerous."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from appliance.config.raw_config import RawConfig
from appliance.config.security import digest_of
from appliance.config.server import ServerConfig, is_loopback
from appliance.config.source_location import DataPath, Diagnostic
from appliance.config.validators.names import name_paths
from appliance.core.suggestions import did_you_mean, known_names

API_KEYS: DataPath = ("server", "api_keys")
"""
Where keys stand.
"""


def keys_are_apart(raw: RawConfig) -> Iterator[Diagnostic]:
    """A key is one caller's, and a name says which."""
    names: dict[str, int] = {}
    digests: dict[str, int] = {}
    for path, key in _entries(raw):
        name, digest, index = key.get("name"), _digest(key), int(path[-1])
        if isinstance(name, str) and names.setdefault(name, index) != index:
            first = names[name]
            yield raw.diagnostic(
                (*path, "name"), f"is that of server.api_keys[{first}]; must be unlike all other names"
            )
        if digest is not None and digests.setdefault(digest, index) != index:
            first = digests[digest]
            place = (*path, "value" if "value" in key else "sha256")
            yield raw.diagnostic(place, f"is the key of server.api_keys[{first}]; each must be another")


def keys_lead_to_models(raw: RawConfig) -> Iterator[Diagnostic]:
    """What a key may use is there."""
    known = [name for path in name_paths(raw) if isinstance(name := raw.get(path), str)]
    for path, key in _entries(raw):
        models = key.get("models")
        for index, name in enumerate(models if isinstance(models, list) else ()):
            place = (*path, "models", index)
            if isinstance(name, str) and name not in known:
                # A hint at what is near would tell what a secret is.
                hint = "" if raw.secrets(place) else did_you_mean(name, known)
                yield raw.diagnostic(place, f"is {raw.quote(place)}, which no model has; {_known(hint, known)}")


def an_operator_has_a_key(raw: RawConfig) -> Iterator[Diagnostic]:
    """What stops a model for everyone is not open to everyone, unless nobody else can connect."""
    path = ("server", "admin")
    if raw.find(path) is not True:
        return
    keys = [key for _, key in _entries(raw)]
    host = raw.find(("server", "host"))
    is_among_us = is_loopback(str(host if host is not None else ServerConfig().host))
    if keys and not any(key.get("admin") is True for key in keys):
        yield raw.diagnostic(
            path, "is true, and no key has admin: true; must be false, or one of server.api_keys have it"
        )
    elif not keys and not is_among_us and raw.find(("server", "tls", "client_ca")) is None:
        yield raw.diagnostic(
            path,
            "is true, and whoever reaches the port could unload models; must have a key with admin: true among "
            "server.api_keys, or server.host: 127.0.0.1, or server.tls.client_ca",
        )


def _entries(raw: RawConfig) -> Iterator[tuple[DataPath, dict[str, Any]]]:  # Any: not checked yet
    keys = raw.find(API_KEYS)
    for index, key in enumerate(keys if isinstance(keys, list) else ()):
        if isinstance(key, dict):
            yield (*API_KEYS, index), key


def _digest(key: dict[str, Any]) -> str | None:  # Any: not checked yet
    if isinstance(value := key.get("value"), str):
        return digest_of(value.encode(errors="replace"))
    digest = key.get("sha256")
    return digest.lower() if isinstance(digest, str) else None


def _known(hint: str, known: Sequence[str]) -> str:
    return hint or known_names("models", known)
