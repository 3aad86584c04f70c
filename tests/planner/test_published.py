"""Parameters counted from a `config.json` alone, against what the makers of well-known models publish."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from appliance.planner.expected_tensors import expected_tensors
from appliance.planner.model_config import Architecture

UNITS = {"M": 6, "B": 9, "T": 12}
MODELS: list[dict[str, Any]] = YAML(typ="safe").load(Path(__file__).with_name("published.yaml").read_text())


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["name"])
def test_the_number_of_parameters_is_the_published_one(model: dict[str, Any]) -> None:
    """Rounded as its maker rounds it, the count of a model is the published one."""
    number, unit = model["published"][:-1], model["published"][-1]
    digits = Decimal(number)

    counted = sum(tensor.elements for tensor in expected_tensors(Architecture(model["config"])))

    assert Decimal(counted).scaleb(-UNITS[unit]).quantize(digits) == digits


def test_the_published_models_are_of_all_kinds() -> None:
    """Twenty models and more: with one and several heads for keys, experts, latent attention, windows, encoders."""
    kinds = {model["config"]["model_type"] for model in MODELS}

    assert len(MODELS) >= 20
    assert kinds >= {"llama", "qwen2", "mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "gemma2", "bert"}
