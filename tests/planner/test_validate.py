"""`appliance validate --deep`: layouts that cannot work are found in the storages, before anything is fetched."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from server_launcher import run_appliance
from server_process import environment
from storage.range_server import serving

Write = Callable[..., Path]
Published = Mapping[str, Mapping[str, Any]]

_MODEL = (
    "  - name: {name}\n    class: generative\n    storage: {{uri: {uri}}}\n    layout: {{tensor_parallel: {ranks}}}\n"
)

# Nobody listens there.
_UNAVAILABLE = "http://127.0.0.1:9/model/"


def _file(tmp_path: Path, **models: tuple[str | Path, int]) -> Path:
    file = tmp_path / "config.yaml"
    written = [_MODEL.format(name=name, uri=uri, ranks=ranks) for name, (uri, ranks) in models.items()]
    file.write_text("models:\n" + "".join(written))
    return file


def _validate(file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    variables = environment(APPLIANCE__STORAGE__CACHE_DIR=str(file.parent / "cache"))
    return run_appliance("validate", "--deep", file, *words, variables=variables)


def test_a_layout_that_cannot_work_is_a_problem_with_its_line(
    write: Write, tmp_path: Path, published: Published
) -> None:
    """Exit code 2 and the place in the file, after a look at the config of a model that lies elsewhere."""
    config = (write(published["Qwen2.5-7B"]) / "config.json").read_bytes()
    with serving({"config.json": config, "model.safetensors": 1 << 20}) as store:
        result = _validate(file := _file(tmp_path, it=(store.uri, 8)))
        sent = store.sent

    assert result.returncode == 2, result.stderr
    assert f"{file}:5:31: models[0].layout.tensor_parallel: is 8, and the model has 28 attention heads" in result.stdout
    assert "those that divide: tensor_parallel 4, tensor_parallel 2" in result.stdout
    assert sent < 1 << 16


def test_a_layout_that_works_is_valid(write: Write, tmp_path: Path, published: Published) -> None:
    """Exit code 0, however much memory this machine has."""
    file = _file(tmp_path, it=(write(published["Llama-3.1-405B"]), 8))

    result = _validate(file)

    assert (result.returncode, result.stdout) == (0, f"{file}: good\n"), result.stderr


def test_an_unavailable_store_has_its_own_exit_code(tmp_path: Path) -> None:
    """The file is not called good, nor wrong: nobody knows."""
    result = _validate(file := _file(tmp_path, it=(_UNAVAILABLE, 1)), "--format", "json")

    (told,) = json.loads(result.stdout)
    (unread,) = told["unread"]
    assert result.returncode == 14
    assert (told["valid"], told["problems"]) == (True, [])
    assert (unread["source"], unread["line"], unread["path"]) == (str(file), 4, "models[0].storage.uri")
    assert "cannot be read; " in unread["message"]
    assert "127.0.0.1:9" in unread["message"]


def test_a_problem_of_the_file_decides_the_exit_code(write: Write, tmp_path: Path, published: Published) -> None:
    """Both are told, and the exit code is that of a wrong file."""
    result = _validate(_file(tmp_path, away=(_UNAVAILABLE, 1), here=(write(published["Qwen2.5-7B"]), 8)))

    assert result.returncode == 2
    assert "models[1].layout.tensor_parallel" in result.stdout
    assert "models[0].storage.uri: cannot be read" in result.stdout
