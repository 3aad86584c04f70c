"""The model classes: one file each, and the one table of them."""

from __future__ import annotations

from collections.abc import Mapping

from appliance.models.adapter import AdapterConfig
from appliance.models.base_config import ModelConfig
from appliance.models.encoder import EncoderConfig
from appliance.models.generative import GenerativeConfig
from appliance.models.proxy import ProxyConfig

MODEL_CONFIGS: Mapping[str, type[ModelConfig]] = {
    "adapter": AdapterConfig,
    "generative": GenerativeConfig,
    "encoder": EncoderConfig,
    "proxy": ProxyConfig,
}
