"""The models of a server by their names, and which of them the current caller may use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from appliance.auth import Authorizer
from appliance.core.errors import RequestError, UnknownModelError
from appliance.models.model_runner import ModelRunner
from appliance.models.model_status import ModelStatus

# Of an unknown name, errors repeat so many characters.
_MAX_NAME_LENGTH = 200


class ModelRegistry:
    """The models that serve, those that a reload adds, and those that are leaving.

    A change of the names is one assignment, so that no request finds half of one.
    """

    def __init__(self, runners: Iterable[ModelRunner], authorizer: Authorizer) -> None:
        self.runners: tuple[ModelRunner, ...] = tuple(runners)
        """Those that serve, or will once they have started."""
        self.incoming: tuple[ModelRunner, ...] = ()
        """Those of a new config that do not serve yet; no request finds them, and readiness does not wait for them."""
        self._leaving: tuple[ModelRunner, ...] = ()
        self._by_name = {name: runner for runner in self.runners for name in runner.status.config.names}
        self._authorizer = authorizer

    @property
    def statuses(self) -> tuple[ModelStatus, ...]:
        """The status of each model that serves, or will."""
        return tuple(runner.status for runner in self.runners)

    @property
    def all_runners(self) -> tuple[ModelRunner, ...]:
        """Every model that may hold memory or files."""
        return (*self.runners, *self.incoming, *self._leaving)

    def get(self, name: str) -> ModelRunner | None:
        """Return the model whose own name this is."""
        return next((runner for runner in self.runners if runner.status.name == name), None)

    def find(self, name: str | None) -> ModelStatus:
        """Return the model with this name or alias, for a caller that may use it; None means the only model.

        Raises:
            RequestError: as for `resolve`; a model that the caller may not use is reported as missing.
        """
        self._authorizer.require_key()
        status = self.resolve(name).status
        if not self._authorizer.sees(name or status.name, status.name):
            raise self._unknown(name)
        return status

    def status_of(self, name: str) -> ModelStatus | None:
        """Return the model with this name or alias, whoever the caller is; None if there is none."""
        runner = self._by_name.get(name)
        return None if runner is None else runner.status

    def resolve(self, name: str | None) -> ModelRunner:
        """Return the model with this name or alias, whoever the caller is; None means the only model.

        Raises:
            RequestError: there is none, or the name is None, and there are several models.
        """
        only = self.runners[0] if len(self.runners) == 1 else None
        runner = only if name is None else self._by_name.get(name)
        if runner is None:
            raise self._unknown(name)
        return runner

    def visible(self) -> Sequence[tuple[ModelStatus, str]]:
        """Return each model under each of the names that the current caller may use."""
        return [
            (status, name)
            for status in self.statuses
            for name in status.config.names
            if self._authorizer.sees(name, status.name)
        ]

    def replace(self, runner: ModelRunner) -> ModelRunner | None:
        """Let requests find this model, in the place of the one with its name, which is returned and leaves."""
        replaced = self.get(runner.status.name)
        others = {name: other for name, other in self._by_name.items() if other is not replaced}
        # An alias may move from one model to another.
        self._by_name = others | dict.fromkeys(runner.status.config.names, runner)
        self.incoming = _without(self.incoming, runner)
        if replaced is None:
            self.runners = (*self.runners, runner)
        else:
            runner.continue_from(replaced)
            self.runners = tuple(runner if each is replaced else each for each in self.runners)
            self._leaving = (*self._leaving, replaced)
        return replaced

    def rename(self, runner: ModelRunner) -> None:
        """Let requests find a model by the names in its config, which have changed."""
        others = {name: other for name, other in self._by_name.items() if other is not runner}
        self._by_name = others | dict.fromkeys(runner.status.config.names, runner)

    def remove(self, runner: ModelRunner) -> None:
        """Let no request find this model; it leaves."""
        self._by_name = {name: other for name, other in self._by_name.items() if other is not runner}
        self.runners = _without(self.runners, runner)
        self.incoming = _without(self.incoming, runner)
        self._leaving = (*self._leaving, runner)

    def forget(self, runner: ModelRunner) -> None:
        """Drop a model that has left."""
        self._leaving = _without(self._leaving, runner)

    def sort_by(self, names: Sequence[str]) -> None:
        """List the models in the order of their config."""
        self.runners = tuple(sorted(self.runners, key=lambda runner: names.index(runner.status.name)))

    def _unknown(self, name: str | None) -> RequestError:
        """Return one error for models that are missing and those that the caller may not use."""
        names = ", ".join(shown for _, shown in self.visible())
        if name is None:
            return RequestError(f"model is missing; it must be one of: {names}", param="model", code="model_missing")
        hidden = "" if self._authorizer.sees_every_model else ", or this key may not use it"
        text = f"The model {name[:_MAX_NAME_LENGTH]!r} does not exist{hidden}; the models here are: {names}"
        return UnknownModelError(text, param="model", code="model_not_found")


def _without(runners: Iterable[ModelRunner], removed: ModelRunner) -> tuple[ModelRunner, ...]:
    return tuple(runner for runner in runners if runner is not removed)
