"""The models by their names, as far as a caller may use them."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.auth import Authorizer
from appliance.core.errors import RequestError, UnknownModelError
from appliance.models.model_runner import ModelRunner
from appliance.models.model_status import ModelStatus
from appliance.models.registry import ModelRegistry

# Of a name that nobody has, so much is repeated.
_LONGEST_NAME = 200


class ModelDirectory:
    """Finds models by any of their names."""

    def __init__(self, roster: ModelRegistry, access: Authorizer) -> None:
        self._roster = roster
        self._access = access

    def find(self, name: str | None) -> ModelRunner:
        """The model that answers to `name`, for a caller that may use it; None means the only one there is.

        Raises:
            UnauthenticatedError: there are keys, and this task works for nobody who came with one.
            RequestError: as for `named`; a model that the caller's key is not for does not exist.
        """
        self._access.require_key()
        life = self._roster.named(name)
        own = "" if life is None else life.entry.config.name
        if life is None or not self._access.sees(name or own, own):
            raise self._unknown(name)
        return life

    def named(self, name: str | None) -> ModelRunner:
        """The model that answers to `name`, whoever asks; None means the only one there is.

        Raises:
            UnknownModelError: nobody answers to it.
            RequestError: None, and there are several.
        """
        if (life := self._roster.named(name)) is not None:
            return life
        raise self._unknown(name)

    def _unknown(self, name: str | None) -> RequestError:
        """
        The refusal of a name; one text for a model that is not there and for one that the caller's key is not for.
        """
        names = ", ".join(shown for _, shown in self.visible())
        if name is None:
            return RequestError(f"model is missing; it must be one of: {names}", param="model", code="model_missing")
        hidden = "" if self._access.sees_every_model else ", or this key may not use it"
        text = f"The model {name[:_LONGEST_NAME]!r} does not exist{hidden}; the models here are: {names}"
        return UnknownModelError(text, param="model", code="model_not_found")

    def visible(self) -> Sequence[tuple[ModelStatus, str]]:
        """Every entry under each name that the current caller may use it by."""
        return [
            (entry, name)
            for entry in self._roster.entries
            for name in entry.config.names
            if self._access.sees(name, entry.config.name)
        ]
