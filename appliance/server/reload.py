"""Reload of the config file while serving: what differs is applied, or the log says why not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import structlog

from appliance.config import Difference, LoadedConfig, differences
from appliance.config.base import Change
from appliance.config.telemetry import LoggingConfig
from appliance.core import logging_setup
from appliance.core.errors import ConfigError
from appliance.models.health import ConfigStatus
from appliance.models.manager import ModelManager
from appliance.models.rollout import Rollout

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# Delay before an unchanged invalid config is read again: a file that is not watched may have been missing.
_RETRY_SECONDS = 5.0

# Reading an invalid config again takes at most a twentieth of one core.
_RETRY_SHARE = 20


class ConfigReload:
    """Changes what a process serves.

    A file with a change that needs a restart is not applied at all, so that the served config is always one file.
    Otherwise its hot keys are applied at once, and its models are replaced in one rollout after the other.
    """

    def __init__(self, loaded: LoadedConfig, manager: ModelManager, apply: Callable[[LoadedConfig], None]) -> None:
        """`apply` is called with the config that is served from now on, for what does not read `manager.config`."""
        self._served = loaded
        self._target = loaded
        self._latest: LoadedConfig | None = loaded
        """The file as it was read last; None if it is not served."""
        self._manager = manager
        self._apply_elsewhere = apply
        self._is_requested = asyncio.Event()
        self._has_target = asyncio.Event()
        self._watcher = FileWatcher(loaded.files)
        self._tasks: list[asyncio.Task[None]] = []
        manager.config_status = ConfigStatus(loaded.digest or "", _now())

    def start(self) -> None:
        """Wait for `request`, and for changes of the file if the config says so; returns at once."""
        self._tasks = [asyncio.create_task(work) for work in (self._read_changes(), self._roll_out())]

    async def close(self) -> None:
        """Stop; nothing is changed any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def request(self) -> None:
        """Have the file read again soon; several requests until then count as one."""
        self._is_requested.set()

    async def _read_changes(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_requested.wait(), FileWatcher.interval_seconds)
            is_watched = self._manager.config.server.watch
            if self._is_requested.is_set() or (is_watched and await asyncio.to_thread(self._watcher.has_changed)):
                self._is_requested.clear()
                await self._read()

    async def _read(self) -> None:
        try:
            await asyncio.to_thread(self._watcher.start_reading)
            new = await asyncio.to_thread(self._served.reload)
            self._watcher.accept(new.files)
            self._accept(new)
        except ConfigError as error:
            self._watcher.reject()
            self._reject(error)
        except Exception as error:
            # An unexpected error must not end the server, or later reloads.
            self._watcher.reject()
            log.exception("config.reload_crashed")
            self._latest = None
            self._show(error=f"{self._served.path}: not applied: unexpected {type(error).__name__}: {error}")

    def _reject(self, error: ConfigError) -> None:
        self._latest = None
        # Without the lines of the file: clients that may read probes need not be allowed to read it.
        reason = "\n".join(str(replace(problem, snippet="")) for problem in error.problems)
        if self._show(error=reason):
            log.error("config.rejected", reason=reason)

    def _accept(self, new: LoadedConfig) -> None:
        # Before anything is logged: a value that was secret once stays secret.
        known = self._served.secrets
        self._served = replace(self._served, secrets=known | new.secrets, hidden=self._served.hidden | new.hidden)
        if not new.secrets <= known:
            self._configure_log(self._manager.config.logging)
        changes = differences(self._served_config(), new)
        restart_required = [each.path for each in changes if each.change is Change.RESTART]
        for each in changes:
            log.info("config.changed", path=each.path, old=each.old, new=each.new, change=each.change)
        self._latest = None if restart_required else new
        if restart_required:
            if self._show(restart_required=restart_required):
                log.warning(
                    "config.restart_required",
                    reason="these keys need a restart; nothing is applied",
                    keys=restart_required,
                )
            return
        # The hot keys, including those of models that are not replaced.
        self._served = replace(new, secrets=self._served.secrets, hidden=self._served.hidden)
        self._configure_log(new.config.logging)
        self._apply_elsewhere(self._served)
        self._apply_to_models(new, changes)
        self._target = new
        self._has_target.set()

    def _apply_to_models(self, new: LoadedConfig, changes: Sequence[Difference]) -> None:
        replaced = _replaced_models(changes)
        for model_config in new.config.models:
            runner = self._manager.registry.get(model_config.name)
            if runner is not None and model_config.name not in replaced:
                runner.apply(model_config)
                self._manager.registry.rename(runner)

    async def _roll_out(self) -> None:
        while True:
            await self._has_target.wait()
            self._has_target.clear()
            target = self._target
            failed: dict[str, str] = {}
            try:
                changes = differences(self._served_config(), target)
                # Again: a model may have been added meanwhile.
                self._apply_to_models(target, changes)
                rollout = Rollout(self._manager, target.config.models, _replaced_models(changes))
                failed = rollout.failed
                await rollout.run(lambda target=target: target is not self._target)  # type: ignore[misc]
            except Exception as error:
                log.exception("config.reload_crashed")
                failed["?"] = f"unexpected {type(error).__name__}: {error}"
            self._settle(target, failed)

    def _settle(self, target: LoadedConfig, failed: Mapping[str, str]) -> None:
        if failed:
            reason = "; ".join(f"models.{name}: {why}" for name, why in failed.items())
            log.error("config.not_applied", reason=reason)
            if target is self._latest:
                self._show(error=f"{target.path}: not applied: {reason}")
            return
        log.info("config.applied", digest=target.digest)
        now = ConfigStatus(target.digest or "", _now())
        before = self._manager.config_status
        # The problems of a still newer file stay.
        if before is not None and target is not self._latest:
            now = replace(now, error=before.error, restart_required=before.restart_required)
        self._manager.config_status = now

    def _served_config(self) -> LoadedConfig:
        """Return the config with the models that are running."""
        configs = tuple(runner.status.config for runner in self._manager.registry.runners)
        return replace(self._served, config=self._manager.config.model_copy(update={"models": configs}))

    def _show(self, error: str | None = None, restart_required: Sequence[str] = ()) -> bool:
        """Show in the probes why the latest file is not served; return whether that is new."""
        before = self._manager.config_status
        if before is None or (before.error, list(before.restart_required)) == (error, list(restart_required)):
            return False
        self._manager.config_status = replace(before, error=error, restart_required=restart_required)
        return True

    def _configure_log(self, settings: LoggingConfig) -> None:
        logging_setup.configure(settings.format, settings.level, self._served.secrets)


def latest(loaded: LoadedConfig) -> LoadedConfig:
    """Return the file as it is now, for a worker that starts late, unless it is invalid or needs a restart."""
    if loaded.path is None:
        return loaded
    try:
        new = loaded.reload()
    except ConfigError:
        return loaded
    needs_restart = any(each.change is Change.RESTART for each in differences(loaded, new))
    return loaded if needs_restart else new


def _replaced_models(changes: Sequence[Difference]) -> set[str]:
    return {each.model for each in changes if each.model is not None and each.change is Change.SWAP}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class FileWatcher:
    """Polls the files of a config; `start_reading` is called before they are read, `accept` or `reject` afterwards.

    Polling, because notifications miss the links that Kubernetes swaps above a file, network disks and mounts have
    none, and a node runs out of them. A config is small, and so are its secrets.
    """

    interval_seconds: ClassVar[float] = 1.0
    """Time between two polls."""

    def __init__(self, files: Mapping[Path, str]) -> None:
        """`files` are those that were read, each with the SHA-256 of its content."""
        self._read = dict(files)
        self._polled = self._read
        self._is_valid = True
        self._started = time.monotonic()
        self._retry_seconds = _RETRY_SECONDS

    def has_changed(self) -> bool:
        """Return whether they have changed, and not since the last poll, so that no write is in progress.

        Also true now and then if the config that was read was invalid. Blocks.
        """
        before, now = self._polled, self._digests()
        self._polled = now
        if now != self._read:
            return now == before
        return not self._is_valid and time.monotonic() - self._started >= self._retry_seconds

    def start_reading(self) -> None:
        """Note that the files are being read; they count as invalid until `accept`."""
        self._read, self._is_valid, self._started = self._digests(), False, time.monotonic()

    def accept(self, files: Mapping[Path, str]) -> None:
        """Note that these files were read, and are valid."""
        self._read, self._is_valid = dict(files), True

    def reject(self) -> None:
        """Note that they are invalid; the longer reading took, the later they are read again unchanged."""
        self._retry_seconds = max(_RETRY_SECONDS, _RETRY_SHARE * (time.monotonic() - self._started))

    def _digests(self) -> dict[Path, str]:
        digests = dict.fromkeys(self._read, "")
        for file in digests:
            # A pipe or a device could block for ever.
            with suppress(OSError):
                digests[file] = sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
        return digests
