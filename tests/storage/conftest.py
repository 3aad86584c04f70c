"""Real parts for the storage room: wheels, an index over HTTP that can be told to fail, a cache of one's own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from storage.fake_hub import Hub, serving

from appliance.storage import Cache
from appliance.storage.filesystems.registry import RemoteFilesystem, register

CHUNKS = 40


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """A cache of this test alone."""
    return Cache.at(tmp_path / "cache")


@pytest.fixture(autouse=True)
def memory_scheme() -> Iterator[None]:
    """The scheme `memory://`."""
    with register("memory", RemoteFilesystem("storage.memory_store:MemoryStore")):
        yield


@pytest.fixture
def only_pip_settings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment where pip has the settings the test gives it and no others."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    return monkeypatch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where wheels are made."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder


@pytest.fixture
def only_folder(folder: Path, only_pip_settings: pytest.MonkeyPatch) -> Path:
    """The folder of wheels as the only place where pip looks."""
    only_pip_settings.setenv("PIP_NO_INDEX", "1")
    only_pip_settings.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def make_wheel(folder: Path) -> Callable[..., Path]:
    """Makes a wheel in the folder: name, version and its members."""

    def make(name: str, version: str, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
        file_name = name.replace("-", "_")
        info = f"{file_name}-{version}.dist-info"
        path = folder / f"{file_name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", compression) as wheel:
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
            for member, data in members.items():
                wheel.writestr(member, data)
        return path

    return make


@dataclass
class Index:
    """A package index over HTTP with one wheel, and the faults it shows."""

    url: str
    wheel: bytes = b""
    page_status: int = 200
    wheel_status: int = 200
    sha256: str | None = None
    promised_size: int | None = None
    delay_seconds: float = 0
    stalls: bool = False
    released: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def index(only_pip_settings: pytest.MonkeyPatch) -> Iterator[Index]:
    """The only index pip knows; its URL carries a password."""
    index = Index("")

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's name
            pass

        def do_GET(self) -> None:
            if self.path.endswith(".whl"):
                self._answer(index.wheel_status, index.wheel, "application/octet-stream")
            else:
                digest = index.sha256 or hashlib.sha256(index.wheel).hexdigest()
                name = "model-1-py3-none-any.whl"
                page = f'<a href="/{name}#sha256={digest}">{name}</a>'.encode()
                self._answer(index.page_status, page, "text/html")

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            body = body if status == 200 else b""
            is_wheel = kind != "text/html"
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str((is_wheel and index.promised_size) or len(body)))
            self.end_headers()
            self.close_connection = True
            # A client that was killed is no fault of the test.
            with suppress(OSError):
                self._write_slowly(body, is_wheel)

        def _write_slowly(self, body: bytes, is_wheel: bool) -> None:
            step = max(1, len(body) // CHUNKS)
            for start in range(0, len(body), step):
                self.wfile.write(body[start : start + step])
                if is_wheel:
                    time.sleep(index.delay_seconds)
                if is_wheel and index.stalls and start > len(body) // 2:
                    index.released.wait()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    index.url = f"http://someone:s3cret@127.0.0.1:{server.server_port}/simple"
    only_pip_settings.setenv("PIP_INDEX_URL", index.url)
    only_pip_settings.setenv("PIP_RESUME_RETRIES", "0")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield index
    index.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def only_hub_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment where huggingface_hub has the settings the test gives it and no others."""
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return monkeypatch


@pytest.fixture
def hub(only_hub_settings: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The only hub there is, without any model."""
    with serving() as hub:
        only_hub_settings.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts Python processes with a script and arguments; ends those that are left."""
    started: list[subprocess.Popen[str]] = []

    def start_one(script: str, *arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.communicate()
