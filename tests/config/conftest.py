"""A config from a text, for the tests of the config package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.cli.options import load_config
from appliance.config import LoadedConfig


@pytest.fixture
def load_text(tmp_path: Path) -> Callable[..., LoadedConfig]:
    """Loads a config given as text, in an environment that is empty unless `environ` says otherwise."""

    def load_text(text: str, *overrides: str, environ: dict[str, str] | None = None) -> LoadedConfig:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, overrides, environ=environ or {})

    return load_text
