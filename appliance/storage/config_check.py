"""Validators of storages in a config: known schemes, installed packages, and options that something reads."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from appliance.config.raw_config import DataPath, Diagnostic, RawConfig, items
from appliance.core.uri import hub_uri_of, is_hub_name, redact, scheme_of
from appliance.storage.filesystems.registry import (
    FILESYSTEMS,
    RemoteFilesystem,
    filesystem_for,
    fsspec_schemes,
    missing_package,
    suggest_scheme,
)

# A scheme with fewer slashes than two, or with more: a path, or a URI without a bucket or host.
_WRONG_SLASHES = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?:/?|/{3,})([^/].*)")


def check(raw: RawConfig) -> Iterator[Diagnostic]:
    """Check the storage of every model, tokenizer and adapter."""
    for path in _storage_paths(raw):
        uri = raw.find((*path, "uri"))
        if isinstance(uri, str):
            if meant := _with_two_slashes(uri):
                yield _slashes(raw, (*path, "uri"), meant)
                continue
            yield from _check(raw, path, uri)
            yield from _check_hub(raw, (*path, "uri"), uri)


def _slashes(raw: RawConfig, path: DataPath, meant: str) -> Diagnostic:
    must = "must have two slashes after the scheme"
    # Neither the value nor a suggestion may give a password away.
    if raw.secrets(path) or redact(meant) != meant:
        return replace(raw.diagnostic(path, f"is a URI or path; {must}"), is_secret=True)
    return raw.diagnostic(path, f"is {raw.quote(path)}; {must}: {meant} (or write ./ before it, for a path)")


def _with_two_slashes(uri: str) -> str | None:
    """The URI that a text with too few or too many slashes stands for; None for any other text."""
    found = _WRONG_SLASHES.fullmatch(uri)
    scheme = found[1].lower() if found else "file"
    if found is None or scheme == "file" or scheme not in FILESYSTEMS:
        return None
    return f"{scheme}://{found[2]}"


def _check(raw: RawConfig, path: DataPath, uri: str) -> Iterator[Diagnostic]:
    quoted, scheme = raw.quote((*path, "uri")), scheme_of(uri) or "file"
    if scheme not in FILESYSTEMS:
        if scheme not in fsspec_schemes():
            # A suggestion would give most of a secret away.
            hint = suggest_scheme("" if raw.secrets((*path, "uri")) else scheme)
            yield raw.diagnostic((*path, "uri"), f"is {quoted}, of an unknown scheme; {hint}")
        elif package := missing_package(scheme):
            yield raw.diagnostic((*path, "uri"), f"is {quoted}, and its filesystem is not installed: {package}")
        return
    filesystem, messages = filesystem_for(uri), {}
    if not isinstance(filesystem, RemoteFilesystem):
        messages["options"] = f"is for filesystems of fsspec, and {quoted} is read by none; must be left out"
        unused = f"selects files to download, and all of {quoted} is used as it is; must be left out"
        messages |= {"include": unused, "exclude": unused}
    elif filesystem.instead:
        messages["options"] = f"is not taken by {quoted}; {filesystem.instead}"
    for key, message in messages.items():
        if raw.find((*path, key)):
            yield raw.key_diagnostic((*path, key), message)


def _check_hub(raw: RawConfig, path: DataPath, uri: str) -> Iterator[Diagnostic]:
    """Suggest the URI of a model on the hub for its page, and for its name alone."""
    if raw.secrets(path):
        return
    if meant := hub_uri_of(uri, os.environ.get("HF_ENDPOINT")):
        yield raw.diagnostic(path, f"is {raw.quote(path)}, a page of the hub and no file; did you mean {meant}?")
    elif is_hub_name(uri) and not Path(uri).parent.exists():
        message = f"is {raw.quote(path)}, and there is no such path; did you mean hf://{uri}?"
        yield raw.diagnostic(path, f"{message} (or ./{uri}, for a path on another machine)")


def _storage_paths(raw: RawConfig) -> Iterator[DataPath]:
    for path, model in raw.models():
        yield (*path, "storage")
        yield (*path, "protocol", "tokenizer")
        yield (*path, "protocol", "chat", "tokenizer")
        yield from ((*path, "adapters", index, "storage") for index, _ in items(model.get("adapters")))
