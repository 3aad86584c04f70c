"""What the process that serves a config needs of the place where it runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from appliance.config import Config, LoadedConfig
from appliance.config.models import LanguageModelConfig, LocalModelConfig
from appliance.config.raw_config import DataPath
from appliance.config.server import ServerConfig
from appliance.config.sources import PREFIX
from appliance.core.errors import ConfigError, Problem
from appliance.core.uri import scheme_of

CONFIG = Path("/etc/appliance/config.yaml")
"""The config in the image, which serves it."""

CACHE = Path("/var/cache/appliance")
"""The only directory of the image that is written to."""

USER, GROUP = 10001, 0
"""The user of the image; any other one works too."""

# Beside the times of the config: the end of engines, after the last request.
_STOP_SECONDS = 25

_LOAD_SECONDS = 3600

# Ranks exchange tensors in shared memory; container runtimes give 64 MiB.
_SHARED_GIB = 4

# Paths that the image sets, or that need no file.
_STORE_KEY = "directory"
_OWN_PATHS = frozenset({"cache_dir", "pvc_root", "lock_file"})


Platform = Literal["machine", "container", "cluster"]
"""A service of this machine, a container of one machine, or objects of Kubernetes."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is planned for all models together."""

    load_seconds: float
    """The time until they are ready."""

    size_bytes: int
    """Their files."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A config, and what its server needs."""

    name: str
    """The name of the service: lower-case letters, digits and `-`."""

    image: str
    """The container image."""

    file: Path
    """The config file, an absolute path."""

    text: str
    """What is in it."""

    config: Config

    variables: Mapping[str, bool]
    """The environment variables that the config refers to, and whether each must be set."""

    secret_files: Mapping[Path, Path]
    """The files that the config refers to, keys and certificates, by their paths in the container."""

    has_gpus: bool
    """Whether models run on GPUs."""

    estimate: Estimate | None
    """None if a model could not be planned."""

    @property
    def server(self) -> ServerConfig:
        return self.config.server

    @property
    def probe_port(self) -> int:
        return self.server.probe_port or self.server.port

    @property
    def ports(self) -> Mapping[str, int]:
        """Every port that is listened on, by its name."""
        ports = {"http": self.server.port, "probes": self.server.probe_port, "grpc": self.server.grpc_port}
        return {name: port for name, port in ports.items() if port is not None}

    @property
    def are_probes_encrypted(self) -> bool:
        """Whether probes need TLS: a port of their own has none."""
        return self.server.tls is not None and self.server.probe_port is None

    @property
    def stop_seconds(self) -> int:
        """The time from SIGTERM to the end of the process: both drain times, and the end of engines."""
        return math.ceil(self.server.drain_delay_seconds + self.server.drain_seconds) + _STOP_SECONDS

    @property
    def load_seconds(self) -> int:
        """The time until all models are ready; where it is not planned, that of a large model on a slow network."""
        return _LOAD_SECONDS if self.estimate is None else math.ceil(self.estimate.load_seconds)

    @property
    def settings(self) -> Mapping[str, str]:
        """Environment variables of the container: its volume is the cache, wherever the file has one."""
        return {f"{PREFIX}STORAGE__CACHE_DIR": str(CACHE)} if self.config.storage.cache_dir else {}

    @property
    def restart_options(self) -> Sequence[str]:
        """Options of `serve` where the platform restarts what has ended, but nothing that is not live."""
        models = (each for each in self.config.models if isinstance(each, LocalModelConfig))
        names = [each.name for each in models if "on_failure" not in each.model_fields_set]
        return [word for name in names for word in ("--set", f"models.{name}.on_failure=exit")]

    @property
    def are_metrics_open(self) -> bool:
        """Whether Prometheus needs no key."""
        return bool(self.server.probe_port) or not self.server.api_keys or self.server.metrics == "open"

    @property
    def has_downloads(self) -> bool:
        """Whether there are models whose files are downloaded."""
        count = sum(len(model.storages) for model in self.config.models)
        return count > len(self.model_paths) + len(self.claims)

    @property
    def needs_volume(self) -> bool:
        """Whether there are files that should outlive a pod."""
        return self.has_downloads or bool(self.stores)

    @property
    def stores(self) -> Sequence[Path]:
        """The directories of what clients store, which must outlive the process."""
        parts = (self.config.responses, self.config.batches)
        return [part.directory for part in parts if part is not None and part.directory is not None]

    @property
    def memory_gib(self) -> int:
        """Memory of the process: the models' files, a fifth more for their cache on a CPU, and the libraries."""
        if all(not model.storages for model in self.config.models):
            return 1
        size_bytes = self.estimate.size_bytes if self.estimate else 0
        return max(16 if self.has_gpus else 6, math.ceil(size_bytes * 1.2 / 2**30) + 4)

    @property
    def gpus(self) -> int:
        """The GPUs of this machine: those that the layouts name, and otherwise the first ones, which models share."""
        layouts = [each.layout for each in self.config.models if isinstance(each, LanguageModelConfig)]
        used = (
            range(1) if each == "auto" else each.devices or range(each.local_ranks) for each in layouts if self.has_gpus
        )
        return len(set(chain.from_iterable(used)))

    @property
    def shared_memory(self) -> str | None:
        """The size of /dev/shm as Kubernetes writes it; None where the default is enough."""
        layouts = [each.layout for each in self.config.models if isinstance(each, LanguageModelConfig)]
        has_several_ranks = any(each == "auto" or each.local_ranks > 1 for each in layouts)
        return f"{_SHARED_GIB}Gi" if self.has_gpus and has_several_ranks else None

    @property
    def model_paths(self) -> Sequence[Path]:
        """The models that are used in place, at the same paths in the container."""
        uris = [each.uri for model in self.config.models for each in model.storages.values()]
        return sorted({Path(uri.removeprefix("file://")) for uri in uris if scheme_of(uri) in (None, "file")})

    @property
    def claims(self) -> Sequence[str]:
        """The volumes of `pvc://` URIs."""
        uris = [each.uri for model in self.config.models for each in model.storages.values()]
        return sorted({uri.removeprefix("pvc://").split("/")[0] for uri in uris if uri.startswith("pvc://")})


def deployment(
    loaded: LoadedConfig,
    variables: Mapping[str, bool],
    *,
    name: str | None,
    image: str,
    has_gpus: bool,
    estimate: Estimate | None,
    platform: Platform,
) -> Deployment:
    """Return what a config needs on a platform.

    Raises:
        ConfigError: a path is relative, so that nobody knows what it leads to elsewhere; a container would listen where
            nothing reaches it; or a model needs several machines of a cluster, whose pods a Deployment does not hold
            together.
    """
    if loaded.path is None:
        raise AssertionError("a config that is exported has a file; this is a bug")
    problems = [*_relative_paths(loaded), *_unreachable(loaded, platform), *_groups(loaded, platform)]
    if problems:
        raise ConfigError(problems)
    directory = loaded.path.parent.absolute()
    files = {_in_container(path, directory): path.absolute() for path in loaded.files if path != loaded.path}
    files |= {path: path for key, path in _paths(loaded.config) if key[-1] != _STORE_KEY}
    name = name or loaded.config.metadata.name or "appliance"
    path = loaded.path.absolute()
    text = path.read_text(encoding="utf-8")
    return Deployment(name, image, path, text, loaded.config, variables, files, has_gpus, estimate)


def _in_container(path: Path, directory: Path) -> Path:
    """Files beside the config are beside it in the container too."""
    path = path.absolute()
    return CONFIG.parent / path.relative_to(directory) if path.is_relative_to(directory) else path


def _relative_paths(loaded: LoadedConfig) -> Iterator[Problem]:
    for index, model in enumerate(loaded.config.models):
        storages = model.storages
        if "model" in storages and scheme_of(uri := storages["model"].uri) is None and not Path(uri).is_absolute():
            yield loaded.problem(("models", index, "storage", "uri"), _relative(uri))
    for path, value in _paths(loaded.config):
        if not value.is_absolute():
            yield loaded.problem(path, _relative(str(value)))


def _unreachable(loaded: LoadedConfig, platform: Platform) -> Iterator[Problem]:
    host = loaded.config.server.host
    if platform != "machine" and (host == "localhost" or host.startswith("127.") or host == "::1"):
        fault = f"is {host}, which nothing outside of the container reaches"
        yield loaded.problem(("server", "host"), f"{fault}; leave it out, or export for systemd")


def _groups(loaded: LoadedConfig, platform: Platform) -> Iterator[Problem]:
    if platform != "cluster":
        return
    for index, model in enumerate(loaded.config.models):
        layout = model.layout if isinstance(model, LanguageModelConfig) else "auto"
        if layout != "auto" and layout.nodes.count > 1:
            remedy = "such a group of pods is a LeaderWorkerSet, as in examples/kubernetes/leaderworkerset.yaml"
            yield loaded.problem(("models", index, "layout", "nodes"), f"needs {layout.nodes.count} machines; {remedy}")


def _relative(path: str) -> str:
    return f"is {path}; must be an absolute path, which is mounted at the same place"


def _paths(value: object, path: DataPath = ()) -> Iterator[tuple[DataPath, Path]]:
    """Every file that a key names."""
    if isinstance(value, BaseModel):
        children = {name: child for name, child in value if name not in _OWN_PATHS}
        for name, child in children.items():
            yield from _paths(child, (*path, name))
    elif isinstance(value, tuple):
        for index, child in enumerate(value):
            yield from _paths(child, (*path, index))
    elif isinstance(value, Path):
        yield path, value
