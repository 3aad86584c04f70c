"""What is done for an engine before its bytes are here, and where what is compiled is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from appliance.engines.vllm.env import set_compile_cache

VARIABLES = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in VARIABLES:
        # Set first: what is set here is taken out again.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    yield
    for name in VARIABLES:
        os.environ.pop(name, None)


def test_what_is_compiled_lies_beside_the_models(tmp_path: Path) -> None:
    """Below the storage's directory, each compiler in its own, where nobody else may write."""
    root = set_compile_cache(tmp_path / "cache")

    assert root is not None
    assert root.parent == tmp_path / "cache" / ".compiled"
    assert root.parent.stat().st_mode & 0o777 == 0o700
    assert [os.environ[name] for name in VARIABLES] == [str(root / each) for each in ("vllm", "inductor", "triton")]


def test_the_users_own_places_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is set already is left alone, the others are set."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")

    root = set_compile_cache(tmp_path / "cache")

    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"
    assert os.environ["VLLM_CACHE_ROOT"] == f"{root}/vllm"


def test_where_others_may_write_nothing_is_kept_to_be_run(tmp_path: Path) -> None:
    """What is compiled is code: a directory that everybody may write is passed over for the user's own."""
    (tmp_path / "cache" / ".compiled").mkdir(parents=True)
    (tmp_path / "cache" / ".compiled").chmod(0o777)

    root = set_compile_cache(tmp_path / "cache")

    assert root is not None
    assert root.is_relative_to(tmp_path / "home" / "appliance")


@pytest.mark.parametrize("name", [".compiled", ".compiled/{processor}", ".compiled/{processor}/inductor"])
def test_no_link_leads_to_what_is_run(tmp_path: Path, name: str) -> None:
    """A link in the place of a directory for code, which may lead into a model's own files, is not followed."""
    planted = tmp_path / "model"
    planted.mkdir()
    own = set_compile_cache(tmp_path / "own")
    assert own is not None
    link = tmp_path / "cache" / name.replace("{processor}", own.name)
    link.parent.mkdir(parents=True, mode=0o700)
    link.symlink_to(planted)
    for variable in VARIABLES:
        os.environ.pop(variable)

    with capture_logs() as events:
        root = set_compile_cache(tmp_path / "cache")

    assert root is not None
    assert root.is_relative_to(tmp_path / "home" / "appliance")
    assert not list(planted.iterdir())
    assert "is a link" in next(each["reason"] for each in events if each["event"] == "compile_cache.rejected")


def test_nothing_that_others_can_exchange_is_run(tmp_path: Path) -> None:
    """Where everybody may rename what lies in the cache, the directory checked now is another one later."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    shared = set_compile_cache(tmp_path / "cache")
    for variable in VARIABLES:
        os.environ.pop(variable)
    (tmp_path / "cache").chmod(0o1777)
    sticky = set_compile_cache(tmp_path / "cache")

    assert shared is not None
    assert shared.is_relative_to(tmp_path / "home" / "appliance")
    assert sticky is not None
    assert sticky.is_relative_to(tmp_path / "cache")


def test_a_volume_that_cannot_be_written_is_passed_over(tmp_path: Path) -> None:
    """
    A cache may be a read-only volume, or no directory at all; where no place is left, the compilers have their own.
    """
    (tmp_path / "cache").write_text("no directory")
    root = set_compile_cache(tmp_path / "cache")
    for name in VARIABLES:
        os.environ.pop(name)
    (tmp_path / "home" / "appliance" / ".compiled").chmod(0o777)
    nowhere = set_compile_cache(tmp_path / "cache")

    assert root is not None
    assert root.is_relative_to(tmp_path / "home" / "appliance")
    assert nowhere is None
    assert not any(name in os.environ for name in VARIABLES)
