"""
The models by their names, as far as a caller may use them.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.access import Access
from appliance.errors import CallError, UnknownModelError
from appliance.lifecycle.entry import Entry


class Directory:
    """
    Finds entries by any of their names.
    """

    def __init__(self, entries: Sequence[Entry], access: Access) -> None:
        self._entries = entries
        self._access = access
        self._by_name = {name: entry for entry in entries for name in entry.section.names}

    def find(self, name: str | None) -> Entry:
        """
        The entry that answers to `name`, for a caller that may use it; None means the only one there is.

        Raises:
            UnauthenticatedError: there are keys, and this task works for nobody who came with one.
            ForbiddenError: the caller's key is not for it.
            CallError: as for `named`.
        """
        self._access.require_key()
        entry = self.named(name)
        self._access.require_model(name or entry.section.name, entry.section.name)
        return entry

    def named(self, name: str | None) -> Entry:
        """
        The entry that answers to `name`, whoever asks; None means the only one there is.

        Raises:
            UnknownModelError: nobody answers to it.
            CallError: None, and there are several.
        """
        if name is None and len(self._entries) == 1:
            return self._entries[0]
        if name is not None and name in self._by_name:
            return self._by_name[name]
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
            for entry in self._entries
            for name in entry.section.names
            if self._access.sees(name, entry.section.name)
        ]
