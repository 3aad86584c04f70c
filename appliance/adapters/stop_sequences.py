"""Stop texts for targets that know of none: the text ends before the first of them."""

from __future__ import annotations

from collections.abc import Sequence


def cut(text: str, stop: Sequence[str]) -> str:
    """The text up to the first stop text in it."""
    return text[: min((at for each in stop if (at := text.find(each)) >= 0), default=len(text))]


class StopSequences:
    """The same for text that comes in pieces: what may be the beginning of a stop text is held back."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self.has_met = False
        """A stop text has come; nothing after it counts."""
        self.after = ""
        """What stood after it so far."""

    def take(self, piece: str) -> str:
        """What can be told for sure after another piece."""
        text = self._held + piece
        kept = cut(text, self._stop)
        self.has_met = kept != text
        if self.has_met:
            met = next(each for each in self._stop if text.startswith(each, len(kept)))
            self.after = text[len(kept) + len(met) :]
        held = 0 if self.has_met else max((_overlap(text, each) for each in self._stop), default=0)
        self._held = text[len(text) - held :]
        return kept[: len(kept) - held]

    def rest(self) -> str:
        """What was held back for nothing."""
        return self._held


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that a stop text begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
