"""The file read again while we serve: what differs is applied, or it is said why not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import structlog

from appliance.config import Difference, LoadedConfig, differences
from appliance.config.base import Change
from appliance.config.telemetry import LoggingConfig
from appliance.core import logging_setup
from appliance.core.errors import ConfigError
from appliance.models.health import ConfigStatus
from appliance.models.manager import ModelManager
from appliance.models.rollout import Rollout
from appliance.server.file_watcher import FileWatcher

log: structlog.stdlib.BoundLogger = structlog.get_logger()


Apply = Callable[[LoadedConfig], None]
"""
Takes the config that is served from now on; for somebody who holds a piece of it in a form of its own.

Whoever reads `ModelManager.config` each time it is wanted need not be one.
"""


class ConfigReload:
    """The one who changes what a process serves.

    A file with a key that needs a restart is not applied at all, so that what is served is always one file. Else its
    hot keys are applied at once, and its models are brought one succession after the other, the latest file last.
    """

    def __init__(self, loaded: LoadedConfig, manager: ModelManager, holders: Sequence[Apply]) -> None:
        self._served = loaded
        self._wanted = loaded
        self._latest: LoadedConfig | None = loaded
        """What was read last; None where that is not served."""
        self._manager = manager
        self._holders = (self._apply_to_log, *holders)
        self._is_asked = asyncio.Event()
        self._is_wanted = asyncio.Event()
        self._watch = FileWatcher(loaded.files)
        self._tasks: list[asyncio.Task[None]] = []
        manager.config_status = ConfigStatus(loaded.digest or "", _now())

    def begin(self) -> None:
        """Wait for `ask`, and for changes of the file where the config wants that; returns at once."""
        self._tasks = [asyncio.create_task(work) for work in (self._read_often(), self._look_often(), self._change())]

    async def close(self) -> None:
        """Change nothing any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def ask(self) -> None:
        """Have the file read again soon, once however often this is asked meanwhile."""
        self._is_asked.set()

    async def _look_often(self) -> None:
        while True:
            await asyncio.sleep(FileWatcher.seconds)
            if self._manager.config.server.watch and await asyncio.to_thread(self._watch.has_changed):
                self.ask()

    async def _read_often(self) -> None:
        while True:
            await self._is_asked.wait()
            self._is_asked.clear()
            try:
                await asyncio.to_thread(self._watch.begin)
                new = await asyncio.to_thread(self._served.reload)
            except ConfigError as error:
                self._watch.refuse()
                self._refuse(error)
            except Exception:
                self._watch.refuse()
                # Whatever it is, it must not end what serves.
                log.exception("config.broke")
            else:
                self._watch.take(new.files)
                self._take(new)

    def _refuse(self, error: ConfigError) -> None:
        self._latest = None
        # Without the lines of the file: who may ask for probes need not be who may read it.
        reason = "\n".join(str(replace(problem, snippet="")) for problem in error.problems)
        if self._say(error=reason):
            log.error("config.refused", reason=reason)

    def _take(self, new: LoadedConfig) -> None:
        # Before anything is logged: what was a secret once stays one.
        known = self._served.secrets
        self._served = replace(self._served, secrets=known | new.secrets, hidden=self._served.hidden | new.hidden)
        if not new.secrets <= known:
            self._configure_log(self._manager.config.logging)
        found = differences(self._now_served(), new)
        restart_required = [each.path for each in found if each.change is Change.RESTART]
        _tell(found)
        self._latest = None if restart_required else new
        if restart_required:
            if self._say(restart_required=restart_required):
                log.warning(
                    "config.waits", reason="these keys need a restart; nothing is applied", keys=restart_required
                )
            return
        self._apply(new, found)
        self._wanted = new
        self._is_wanted.set()

    def _apply(self, new: LoadedConfig, found: Sequence[Difference]) -> None:
        """The hot keys, those of models that are not brought anew among them."""
        self._served = replace(new, secrets=self._served.secrets, hidden=self._served.hidden)
        for apply in self._holders:
            apply(self._served)
        self._apply_to_models(new, found)

    def _apply_to_models(self, new: LoadedConfig, found: Sequence[Difference]) -> None:
        swapped = _models(found)
        for model_config in new.config.models:
            runner = self._manager.registry.get(model_config.name)
            if runner is not None and model_config.name not in swapped:
                runner.apply(model_config)

    async def _change(self) -> None:
        while True:
            await self._is_wanted.wait()
            self._is_wanted.clear()
            wanted = self._wanted
            found = differences(self._now_served(), wanted)
            # Once more: a model may have come meanwhile.
            self._apply_to_models(wanted, found)
            succession = Rollout(self._manager, wanted.config.models, _models(found))
            try:
                await succession.run(lambda wanted=wanted: wanted is not self._wanted)  # type: ignore[misc]
            except Exception as error:
                log.exception("config.broke")
                succession.failed["?"] = f"unexpected {type(error).__name__}: {error}"
            self._settle(wanted, succession.failed)

    def _settle(self, wanted: LoadedConfig, failed: Mapping[str, str]) -> None:
        if failed:
            reason = "; ".join(f"models.{name}: {why}" for name, why in failed.items())
            log.error("config.not_applied", reason=reason)
            if wanted is self._latest:
                self._say(error=f"{wanted.path}: not applied: {reason}")
            return
        log.info("config.applied", digest=wanted.digest)
        now = ConfigStatus(wanted.digest or "", _now())
        before = self._manager.config_status
        # What was said of a still newer file holds.
        if before is not None and wanted is not self._latest:
            now = replace(now, error=before.error, restart_required=before.restart_required)
        self._manager.config_status = now

    def _now_served(self) -> LoadedConfig:
        """The config with the models that are there."""
        configs = tuple(runner.status.config for runner in self._manager.registry.runners)
        return replace(self._served, config=self._manager.config.model_copy(update={"models": configs}))

    def _say(self, error: str | None = None, restart_required: Sequence[str] = ()) -> bool:
        """Show in the probes why the latest file is not served; whether it is news."""
        before = self._manager.config_status
        if before is None or (before.error, list(before.restart_required)) == (error, list(restart_required)):
            return False
        self._manager.config_status = replace(before, error=error, restart_required=restart_required)
        return True

    def _apply_to_log(self, loaded: LoadedConfig) -> None:
        self._configure_log(loaded.config.logging)

    def _configure_log(self, settings: LoggingConfig) -> None:
        logging_setup.configure(settings.format, settings.level, self._served.secrets)


def newest(loaded: LoadedConfig) -> LoadedConfig:
    """The file as it is now, for a process that begins late, unless it is wrong or needs that all begin anew."""
    if loaded.path is None:
        return loaded
    try:
        new = loaded.reload()
    except ConfigError:
        return loaded
    needs_restart = any(each.change is Change.RESTART for each in differences(loaded, new))
    return loaded if needs_restart else new


def _models(found: Sequence[Difference]) -> set[str]:
    return {each.model for each in found if each.model is not None and each.change is Change.SWAP}


def _tell(found: Sequence[Difference]) -> None:
    for each in found:
        log.info("config.changed", path=each.path, old=each.old, new=each.new, change=each.change)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
