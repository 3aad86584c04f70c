"""The models that serve, by the names that lead to them, and those on their way in and out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from appliance.models.model_runner import ModelRunner
from appliance.models.model_status import ModelStatus


class ModelRegistry:
    """Who is asked under which name; a change is one assignment, so that no call ever finds half of one."""

    def __init__(self, lives: Iterable[ModelRunner]) -> None:
        self.lives: tuple[ModelRunner, ...] = tuple(lives)
        self.coming: tuple[ModelRunner, ...] = ()
        """Those that a new config brings, until they are ready; no call finds them, and no probe waits for them."""
        self._leaving: tuple[ModelRunner, ...] = ()
        self._by_name = {name: life for life in self.lives for name in life.entry.config.names}

    @property
    def entries(self) -> tuple[ModelStatus, ...]:
        """The models that serve, or are to."""
        return tuple(life.entry for life in self.lives)

    @property
    def everyone(self) -> tuple[ModelRunner, ...]:
        """All that hold anything."""
        return (*self.lives, *self.coming, *self._leaving)

    def named(self, name: str | None) -> ModelRunner | None:
        """The one that answers to `name`, or None; of no name, the only one there is."""
        if name is None:
            return self.lives[0] if len(self.lives) == 1 else None
        return self._by_name.get(name)

    def get(self, name: str) -> ModelRunner | None:
        """The one whose own name this is."""
        return next((life for life in self.lives if life.entry.config.name == name), None)

    def put(self, life: ModelRunner) -> ModelRunner | None:
        """
        Have calls find `life`, instead of the one of its name that there was, which is returned and is leaving now.
        """
        old = self.get(life.entry.config.name)
        others = {name: each for name, each in self._by_name.items() if each is not old}
        # The latest who claims a name has it: an alias may move from one model to another.
        self._by_name = others | dict.fromkeys(life.entry.config.names, life)
        self.coming = tuple(each for each in self.coming if each is not life)
        if old is None:
            self.lives = (*self.lives, life)
        else:
            # What a model was asked is not forgotten with its engine.
            life.entry.tally, life.entry.restarts = old.entry.tally, old.entry.restarts
            self.lives = tuple(life if each is old else each for each in self.lives)
            self._leaving = (*self._leaving, old)
        return old

    def remove(self, life: ModelRunner) -> None:
        """Have no call find it; it is leaving now."""
        self._by_name = {name: each for name, each in self._by_name.items() if each is not life}
        self.lives = tuple(each for each in self.lives if each is not life)
        self.coming = tuple(each for each in self.coming if each is not life)
        self._leaving = (*self._leaving, life)

    def forget(self, life: ModelRunner) -> None:
        """It has left."""
        self._leaving = tuple(each for each in self._leaving if each is not life)

    def arrange(self, names: Sequence[str]) -> None:
        """Show the models in the order of their config."""
        self.lives = tuple(sorted(self.lives, key=lambda life: names.index(life.entry.config.name)))
