"""
The models by their names, as far as a caller may use them.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.access import Access
from appliance.errors import CallError, UnknownModelError
from appliance.lifecycle.entry import Entry
from appliance.lifecycle.life import Life
from appliance.lifecycle.roster import Roster


class Directory:
    """
    Finds models by any of their names.
    """

    def __init__(self, roster: Roster, access: Access) -> None:
        self._roster = roster
        self._access = access

    def find(self, name: str | None) -> Life:
        """
        The model that answers to `name`, for a caller that may use it; None means the only one there is.

        Raises:
            UnauthenticatedError: there are keys, and this task works for nobody who came with one.
            ForbiddenError: the caller's key is not for it.
            CallError: as for `named`.
        """
        self._access.require_key()
        life = self.named(name)
        own = life.entry.section.name
        self._access.require_model(name or own, own)
        return life

    def named(self, name: str | None) -> Life:
        """
        The model that answers to `name`, whoever asks; None means the only one there is.

        Raises:
            UnknownModelError: nobody answers to it.
            CallError: None, and there are several.
        """
        if (life := self._roster.named(name)) is not None:
            return life
        names = ", ".join(shown for _, shown in self.visible())
        if name is None:
            raise CallError(f"model is missing; it must be one of: {names}", param="model", code="model_missing")
        raise UnknownModelError(
            f"The model {name!r} does not exist; the models here are: {names}", param="model", code="model_not_found"
        )

    def visible(self) -> Sequence[tuple[Entry, str]]:
        """
        Every entry under each name that the current caller may use it by.
        """
        return [
            (entry, name)
            for entry in self._roster.entries
            for name in entry.section.names
            if self._access.sees(name, entry.section.name)
        ]
