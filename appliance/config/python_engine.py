"""The engine section of a model written in Python."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, JsonValue

from appliance.config.base import BaseConfig, without_free_keys

_NAME = r"[A-Za-z_]\w*"


class PythonConfig(BaseConfig):
    """A class of yours computes."""

    python: Annotated[str, Field(pattern=rf"^{_NAME}(\.{_NAME})*:{_NAME}$")]
    """
    The model's class as `package.module:ClassName`, a subclass of one of `appliance.openai`.
    Its module is installed, on `PYTHONPATH`, or in the directory the appliance is started in, and is imported when the
    model is loaded.
    """

    args: Annotated[dict[str, JsonValue], BeforeValidator(without_free_keys)] = Field(default_factory=dict)
    """Keyword arguments of the class, after the model's name."""
