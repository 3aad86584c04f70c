"""
The model classes: one file each, and the one table of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from appliance.models.adapter import AdapterSection
from appliance.models.base_config import ModelSection
from appliance.models.encoder import EncoderSection
from appliance.models.generative import GenerativeSection
from appliance.models.proxy import ProxySection

SECTIONS: Mapping[str, type[ModelSection]] = {
    "adapter": AdapterSection,
    "generative": GenerativeSection,
    "encoder": EncoderSection,
    "proxy": ProxySection,
}
