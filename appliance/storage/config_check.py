"""Validators of storages in a config: known schemes, installed packages, and options that something reads."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.config.raw_config import DataPath, Diagnostic, RawConfig, items
from appliance.core.uri import scheme_of
from appliance.storage.filesystems.registry import (
    FILESYSTEMS,
    RemoteFilesystem,
    fsspec_schemes,
    missing_package,
    suggest_scheme,
)


def check(raw: RawConfig) -> Iterator[Diagnostic]:
    """Check the storage of every model, tokenizer and adapter."""
    for path in _storage_paths(raw):
        uri = raw.find((*path, "uri"))
        if isinstance(uri, str):
            yield from _check(raw, path, scheme_of(uri) or "file")


def _check(raw: RawConfig, path: DataPath, scheme: str) -> Iterator[Diagnostic]:
    uri, quoted = (*path, "uri"), raw.quote((*path, "uri"))
    if scheme not in FILESYSTEMS:
        if scheme not in fsspec_schemes():
            # A suggestion would give most of a secret away.
            hint = suggest_scheme("" if raw.secrets(uri) else scheme)
            yield raw.diagnostic(uri, f"is {quoted}, of an unknown scheme; {hint}")
        elif package := missing_package(scheme):
            yield raw.diagnostic(uri, f"is {quoted}, and its filesystem is not installed: {package}")
    elif raw.find((*path, "options")) and not isinstance(FILESYSTEMS[scheme], RemoteFilesystem):
        yield raw.key_diagnostic(
            (*path, "options"), f"is for filesystems of fsspec, and {quoted} is read by none; must be left out"
        )


def _storage_paths(raw: RawConfig) -> Iterator[DataPath]:
    for path, model in raw.models():
        yield (*path, "storage")
        yield (*path, "protocol", "tokenizer")
        yield (*path, "protocol", "chat", "tokenizer")
        yield from ((*path, "adapters", index, "storage") for index, _ in items(model.get("adapters")))
