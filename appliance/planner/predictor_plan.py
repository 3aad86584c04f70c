"""The plan of a predictor or an ONNX encoder: the bytes of its files, and the times to download and to load them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from appliance.config.engine import FrameworkConfig, OnnxEncoderConfig
from appliance.config.models import EncoderConfig, ModelConfig, PredictorConfig
from appliance.config.storage import GlobalStorageConfig
from appliance.planner.planner import DEFAULT_GBIT, LoadTime, load_time
from appliance.storage.file_reader import open_reader
from appliance.storage.selection import model_file, onnx_file

# The import of the framework.
_START_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class PredictorPlan:
    """Sizes in bytes; a loaded model takes about as much memory as its files."""

    model: str
    framework: str
    files: int
    size_bytes: int
    disk_bytes: int
    timing: LoadTime

    def describe(self) -> dict[str, Any]:  # Any: JSON values
        """Return the plan as JSON."""
        return asdict(self)

    def report(self) -> str:
        """Return the plan as text."""
        times = self.timing
        download = (
            f"{times.download_seconds:.0f} s at {times.gbit:g} Gbit/s" if self.disk_bytes else "the files are local"
        )
        files = f"{self.files} file{'s'[: self.files != 1]}"
        return (
            f"{self.model}: {self.framework} on the CPU, {decimal(self.size_bytes)} in {files}\n"
            f"  download     {decimal(self.disk_bytes)}, {download}; loading takes about {times.load_seconds:.0f} s"
        )


def plan_predictor(
    config: ModelConfig, settings: GlobalStorageConfig, gbit: float = DEFAULT_GBIT
) -> PredictorPlan | None:
    """Plan a predictor or an encoder that a framework computes; None for other models.

    Raises:
        LoadError: there is no file to load, or there are several.
        StorageError: its files cannot be read.
    """
    if not isinstance(config, PredictorConfig | EncoderConfig):
        return None
    engine = config.engine
    if not isinstance(engine, FrameworkConfig | OnnxEncoderConfig):
        return None
    with open_reader(config.storages["model"], settings) as reader:
        sizes, is_local, location = reader.files, reader.is_local, reader.location
    if not Path(location).is_file():
        # Of files that are used in place, none were left out.
        if isinstance(engine, OnnxEncoderConfig):
            file, globs = onnx_file(location, sizes, engine), engine.include
        else:
            file, globs = model_file(location, sizes, engine), engine.patterns
        own = [name for name in sizes if name == file or any(fnmatchcase(name, glob) for glob in globs)]
        sizes = {name: sizes[name] for name in own}
    size_bytes = sum(sizes.values())
    download_bytes = 0 if is_local else size_bytes
    timing = load_time(download_bytes, size_bytes, _START_SECONDS, gbit)
    return PredictorPlan(config.name, config.backend, len(sizes), size_bytes, download_bytes, timing)
