"""Models as their files begin: configs, and headers of weights that are holes in a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from appliance.planner.expected_tensors import expected_tensors
from appliance.planner.model_config import Architecture
from appliance.planner.safetensors_header import TensorInfo

Write = Callable[..., Path]

_PUBLISHED: list[dict[str, Any]] = YAML(typ="safe").load(Path(__file__).with_name("published.yaml").read_text())


@pytest.fixture(scope="session")
def published() -> Mapping[str, Mapping[str, Any]]:
    """The configs of well-known models, by name."""
    common = {"torch_dtype": "bfloat16", "max_position_embeddings": 131072}
    return {model["name"]: {**common, **model["config"]} for model in _PUBLISHED}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a model of a config as a directory: the headers are whole, and the weights take no room on the disk."""

    def written(config: Mapping[str, Any], name: str = "model", tensors: Iterable[TensorInfo] | None = None) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer.json").write_text("{}")
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        _write_header(folder / "model.safetensors", tensors or expected_tensors(Architecture(config)))
        return folder

    return written


def _write_header(file: Path, tensors: Iterable[TensorInfo]) -> None:
    header, end = {}, 0
    for each in tensors:
        offsets = [end, end + each.size_bytes]
        header[each.name] = {"dtype": each.dtype, "shape": list(each.shape), "data_offsets": offsets}
        end += each.size_bytes
    raw = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        stream.truncate(8 + len(raw) + end)
