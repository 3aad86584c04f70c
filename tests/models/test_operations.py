"""The operations of models in vLLM."""

from __future__ import annotations

import pytest

from appliance.config.engine import EngineConfig, ServingConfig
from appliance.config.models import EncoderConfig, GenerativeConfig
from appliance.core.model import SINGLE_FRONT_END, Operation
from appliance.models.encoder import EncoderModel
from appliance.models.vllm_model import GenerativeModel

STORAGE = {"uri": "file:///model"}


@pytest.mark.parametrize("is_shown", [False, True])
def test_a_tokenizer_is_shown_only_where_the_config_says_so(is_shown: bool) -> None:
    """For models of both classes; both tokenize in any case."""
    engine = EngineConfig(serving=ServingConfig(enable_tokenizer_info_endpoint=is_shown))

    generative = GenerativeConfig.model_validate({"class": "generative", "name": "a", "storage": STORAGE})
    encoder = EncoderConfig.model_validate({"class": "encoder", "name": "b", "storage": STORAGE, "task": "rerank"})

    for model in (
        GenerativeModel(generative, engine, SINGLE_FRONT_END),
        EncoderModel(encoder, engine, SINGLE_FRONT_END),
    ):
        assert (Operation.TOKENIZER_INFO in model.operations) is is_shown
        assert {Operation.TOKENIZE, Operation.DETOKENIZE} <= model.operations
