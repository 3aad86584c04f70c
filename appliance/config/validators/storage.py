"""Rules about where bytes come from."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.config.raw_config import RawConfig, items
from appliance.config.source_location import DataPath, Diagnostic
from appliance.config.storage import SCHEMES
from appliance.core.suggestions import did_you_mean, known_names
from appliance.core.uri import scheme_of


def schemes_are_known(raw: RawConfig) -> Iterator[Diagnostic]:
    """Whatever is to be brought has a scheme that can be brought, or is a plain path."""
    for path in _uri_paths(raw):
        uri = raw.find(path)
        scheme = scheme_of(uri) if isinstance(uri, str) else None
        if scheme is not None and scheme not in SCHEMES:
            # A hint at what is near would tell what a secret is.
            near = "" if raw.secrets(path) else did_you_mean(scheme, SCHEMES)
            hint = near or f"{known_names('schemes', SCHEMES)}, and plain paths need none"
            yield raw.diagnostic(path, f"is {raw.quote(path)}, of an unknown scheme; {hint}")


def _uri_paths(raw: RawConfig) -> Iterator[DataPath]:
    for path, model in raw.models():
        yield (*path, "storage", "uri")
        yield (*path, "protocol", "tokenizer", "uri")
        yield (*path, "protocol", "chat", "tokenizer", "uri")
        yield from ((*path, "adapters", index, "storage", "uri") for index, _ in items(model.get("adapters")))
