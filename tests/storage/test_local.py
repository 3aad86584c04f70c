"""Plain paths and `file://`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import ArtifactNotFoundError, StorageError
from appliance.storage import materialize


def fetch_model(uri: str) -> Path:
    """Materialize with a cache that must not be needed."""
    return materialize(StorageConfig(uri=uri), GlobalStorageConfig(cache_dir=Path("/nonexistent")), lambda *_: None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with one file."""
    directory = tmp_path / "my model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    return directory


def test_a_directory_is_used_in_place(model: Path) -> None:
    """Nothing is copied, whichever way the path is written."""
    assert fetch_model(str(model)) == model
    assert fetch_model(model.as_uri()) == model
    assert fetch_model(f"file://localhost{model.as_uri().removeprefix('file://')}") == model
    assert fetch_model(f"file:{model.as_uri().removeprefix('file://')}") == model


def test_a_single_file_is_used_in_place(model: Path) -> None:
    """A regular file is as good as a directory."""
    assert fetch_model(str(model / "config.json")) == model / "config.json"


def test_a_relative_path_starts_at_the_current_directory(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`./my model` means what a shell would mean, and comes out absolute."""
    monkeypatch.chdir(model.parent)

    assert fetch_model("my model") == model


def test_a_tilde_is_the_home_directory(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is expanded in plain paths."""
    monkeypatch.setenv("HOME", str(model.parent))

    assert fetch_model("~/my model") == model


@given(name=st.binary(min_size=1, max_size=60).filter(lambda name: not {0, 47} & {*name} and name not in (b".", b"..")))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_file_name_can_be_percent_encoded(tmp_path: Path, name: bytes) -> None:
    """Whatever bytes a file name has, its percent-encoded URI leads to it."""
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(b"x")

    assert fetch_model(f"file://{tmp_path}/{quote_from_bytes(name)}") == path


def test_a_plain_path_is_not_decoded(tmp_path: Path) -> None:
    """Percent signs mean something in URIs only."""
    (tmp_path / "a%20b").write_text("x")

    assert fetch_model(str(tmp_path / "a%20b")).name == "a%20b"


@pytest.mark.parametrize(
    ("uri", "fault"),
    [
        ("file://host/models/a", "names the host 'host'"),
        ("file://", "not an absolute path"),
        ("file:///a%00b", "not an absolute path"),
        ("file:///a?b", "write '?' as %3F"),
        ("file:///a#b", "write '?' as %3F and '#' as %23"),
        ("a\0b", "NUL"),
        ("~nobody-has-this-name/x", "no home directory"),
    ],
)
def test_a_bad_path_is_refused_with_a_remedy(uri: str, fault: str) -> None:
    """What cannot be a local path is refused before the disk is touched."""
    with pytest.raises(StorageError, match=fault.replace("?", "[?]")):
        fetch_model(uri)


def test_a_missing_path_says_how_far_it_exists_and_what_is_near(model: Path) -> None:
    """A typing error in a path is found at once."""
    with pytest.raises(ArtifactNotFoundError) as caught:
        fetch_model(str(model.parent / "my modle" / "x"))

    said = str(caught.value).replace(")", "")
    assert f"{model.parent} exists, and has no 'my modle'; did you mean \"my model\"?" in said


def test_the_name_of_a_model_on_the_hub_is_no_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Unless there is such a directory."""
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ArtifactNotFoundError, match=r"no such file or directory; did you mean hf://owner/name\?"):
        fetch_model("owner/name")
    (tmp_path / "owner").mkdir()
    with pytest.raises(ArtifactNotFoundError, match="check the path, and that its volume is mounted"):
        fetch_model("owner/name")


def test_a_dangling_link_is_named_as_such(tmp_path: Path) -> None:
    """A link to nowhere is not called missing."""
    (tmp_path / "link").symlink_to("gone")

    with pytest.raises(ArtifactNotFoundError, match="a link to gone"):
        fetch_model(str(tmp_path / "link"))


def test_an_empty_directory_is_not_a_model(tmp_path: Path) -> None:
    """A volume that was not mounted leaves an empty directory, and that is said."""
    with pytest.raises(ArtifactNotFoundError, match="empty; is the volume mounted"):
        fetch_model(str(tmp_path))


def test_a_pipe_is_not_a_model(tmp_path: Path) -> None:
    """Neither files nor directories are refused, and not waited for."""
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(StorageError, match="neither a directory nor a regular file"):
        fetch_model(str(tmp_path / "pipe"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not read")
@pytest.mark.parametrize("mode", [0o000, 0o700])
def test_an_unreadable_path_names_the_user(model: Path, mode: int) -> None:
    """Who may not read is told so, by number, as containers have users without names."""
    script = """
import os, sys
from pathlib import Path
from appliance.core.errors import AccessDeniedError
from appliance.storage import materialize
from appliance.config.storage import StorageConfig, GlobalStorageConfig
os.setuid(65534)
try:
    materialize(StorageConfig(uri=sys.argv[1]), GlobalStorageConfig(cache_dir=Path("/nonexistent")), lambda *_: None)
except AccessDeniedError as error:
    print(error)
"""
    model.chmod(mode)

    said = subprocess.run([sys.executable, "-c", script, str(model)], capture_output=True, text=True, check=True).stdout

    assert "user 65534 cannot read it; change its owner or mode" in said


def test_pickles_alone_are_refused_here_too(model: Path) -> None:
    """In a directory or alone, unless they are allowed; beside safetensors nobody reads them."""
    pickle = model / "pytorch_model.bin"
    pickle.write_bytes(b"pickle")
    for uri in (str(model), str(pickle)):
        with pytest.raises(StorageError, match=r"pytorch_model\.bin: pickled.*allow_pickle: true"):
            fetch_model(uri)
        storage = StorageConfig(uri=uri, allow_pickle=True)
        assert materialize(storage, GlobalStorageConfig(), lambda *_: None) == Path(uri)

    (model / "model.safetensors").write_bytes(b"")
    assert fetch_model(str(model)) == model
