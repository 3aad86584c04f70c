"""
What the models of one server share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from appliance.contract import Peers
from appliance.lifecycle.deaths import Patience
from appliance.lifecycle.entry import Entry
from appliance.storage.section import StorageSettings


@dataclass(frozen=True, slots=True)
class Surroundings:
    """
    What each of them lives with.
    """

    peers: Peers
    storage: Callable[[], StorageSettings]
    """What holds for a fetch that begins now."""

    turn: asyncio.Lock
    """Held while an engine starts."""

    patience: Patience
    serves: Callable[[Entry], bool]
    """Whether calls find it: of who is on the way in or out, nothing ends the process."""

    end: Callable[[int], None]
    """Told the exit code when the process is to end with a model."""
