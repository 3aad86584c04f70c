"""The wheel and the source distribution, as `uv build` makes them."""

from __future__ import annotations

import email
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from server_process import environment

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Distributions:
    """One build: the wheel is made from the source distribution."""

    wheel: Path
    sdist: Path

    @classmethod
    def build(cls, folder: Path, project_url: str = "") -> Distributions:
        """Build both into a folder; `project_url` is the address of the repository."""
        command = [sys.executable, "-m", "uv", "build", "--quiet", "--out-dir", str(folder), str(ROOT)]
        env = environment(PROJECT_URL=project_url)
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=250)
        assert done.returncode == 0, done.stderr
        (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
        return cls(wheel, sdist)

    @property
    def metadata(self) -> Message:
        """The core metadata of the wheel; the body is the description."""
        with zipfile.ZipFile(self.wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            return email.message_from_bytes(archive.read(name))

    @property
    def extras(self) -> Sequence[str]:
        """The names of the extras."""
        return self.metadata.get_all("Provides-Extra", [])

    def wheel_names(self) -> set[str]:
        """The paths in the wheel, except those of its metadata."""
        with zipfile.ZipFile(self.wheel) as archive:
            return {name for name in archive.namelist() if ".dist-info/" not in name}

    def sdist_names(self) -> set[str]:
        """The paths in the source distribution, below its only folder."""
        with tarfile.open(self.sdist) as archive:
            return {name.partition("/")[2] for name in archive.getnames()}
