"""Requests as the config of their model changes them, by the name that the client used."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from appliance.config.models import GenerativeConfig, PredictorConfig
from appliance.core.errors import RequestError
from appliance.core.model import ModelRequest, Operation
from appliance.models.presets import RequestPresets

CHAT = Operation.CHAT_COMPLETION


def _presets(**keys: Any) -> RequestPresets:
    storage = {"uri": "/models/m"}
    keys = {"name": "m", "class": "generative", "storage": storage, **keys}
    return RequestPresets(GenerativeConfig.model_validate(keys))


async def _applied(presets: RequestPresets, name: str, **fields: Any) -> Any:
    request = await presets.apply(name, ModelRequest(CHAT, json.dumps(fields).encode()))
    return json.loads(request.body)


async def test_an_alias_changes_requests_on_top_of_its_model() -> None:
    """A plain alias and a LoRA adapter have the model's changes alone, and the client's own values stay."""
    presets = _presets(
        request={"defaults": {"temperature": 1, "top_p": 0.5}, "system_prompt": "Be brief."},
        aliases=["plain", {"name": "coder", "request": {"defaults": {"temperature": 0.2}, "override": {"n": 1}}}],
        adapters=[{"name": "lora", "storage": {"uri": "/models/lora"}}],
    )
    system = {"role": "system", "content": "Be brief."}
    of_model = {"messages": [system], "temperature": 1, "top_p": 0.5}

    for name in ("m", "plain", "lora"):
        assert await _applied(presets, name, messages=[]) == of_model
    assert await _applied(presets, "coder", messages=[], n=2) == of_model | {"temperature": 0.2, "n": 1}
    assert await _applied(presets, "coder", messages=[], temperature=2) == of_model | {"temperature": 2, "n": 1}


async def test_a_request_without_changes_is_passed_on_as_it_is() -> None:
    """Its body is not even parsed; tensors and forms never are."""
    plain, changed = _presets(), _presets(request={"defaults": {"temperature": 1}})
    chat, tensors = ModelRequest(CHAT, b"[1]"), ModelRequest(Operation.INFERENCE, b"\x00")

    assert await plain.apply("m", chat) is chat
    assert await changed.apply("m", tensors) is tensors
    with pytest.raises(RequestError, match="The body is not a request"):
        await changed.apply("m", chat)


async def test_dropped_stream_options_are_not_sent_for_the_usage() -> None:
    """An upstream that rejects them does not get them from us either."""
    presets = _presets(request={"drop": ["stream_options"]})
    request = ModelRequest(CHAT, b'{"stream_options": {}, "n": 1}', on_usage=lambda _: None)

    made = await presets.apply("m", request)

    assert (json.loads(made.body), made.on_usage) == ({"n": 1}, None)


def test_a_predictor_has_no_presets() -> None:
    """Its requests are tensors, in which there is nothing to change."""
    keys = {"name": "p", "class": "predictor", "engine": {"framework": "onnx"}, "storage": {"uri": "/models/p"}}

    assert PredictorConfig.model_validate({**keys, "aliases": ["q"]}).names == ("p", "q")
    with pytest.raises(ValidationError, match="aliases"):
        PredictorConfig.model_validate({**keys, "aliases": [{"name": "q"}]})
