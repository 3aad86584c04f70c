"""Validators of engine arguments that name other weights, or a loader that is not installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from appliance.config.raw_config import DataPath, Diagnostic, RawConfig

# Values of `speculative_config.model` that name a method without weights.
_METHODS_WITHOUT_WEIGHTS = frozenset({"ngram", "[ngram]", "suffix"})

_LOADER_PACKAGES = {
    "fastsafetensors": "fastsafetensors",
    "instanttensor": "instanttensor",
    "runai_streamer": "runai_model_streamer",
    "runai_streamer_sharded": "runai_model_streamer",
}


def check(raw: RawConfig) -> Iterator[Diagnostic]:
    """Check the engine arguments of every model."""
    for path, _ in raw.models():
        args = (*path, "engine", "args")
        if raw.find((*path, "engine", "python")):
            continue
        for where in _weight_paths(raw, args):
            value = raw.find(where)
            if isinstance(value, str) and not value.startswith("/") and value not in _METHODS_WITHOUT_WEIGHTS:
                yield raw.diagnostic(
                    where,
                    f"is {raw.quote(where)}, and the engine downloads nothing; "
                    "must be the absolute path of a directory on this machine",
                )
        yield from _check_loader(raw, (*args, "load_format"))


def _weight_paths(raw: RawConfig, args: DataPath) -> Iterator[DataPath]:
    """Yield the arguments that name weights beside the model's."""
    yield (*args, "spec_model")
    yield (*args, "speculative_config", "model")
    loras = raw.find((*args, "default_mm_loras"))
    if isinstance(loras, dict):
        yield from ((*args, "default_mm_loras", modality) for modality in loras)


def _check_loader(raw: RawConfig, where: DataPath) -> Iterator[Diagnostic]:
    package = _LOADER_PACKAGES.get(str(raw.find(where)))
    # A machine that only checks files has no engine either.
    if package and importlib.util.find_spec("vllm") and not importlib.util.find_spec(package):
        yield raw.diagnostic(where, f"is {raw.quote(where)}, which needs the package {package}; must be installed")
