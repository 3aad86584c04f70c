"""Completions with a suffix, for models whose tokenizers show how their prompts have it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from appliance.core.errors import RequestError
from appliance.engines.vllm.patches import render_suffixes

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def _renderer(*added_tokens: str, is_deepseek_v4: bool = False) -> Any:
    """A renderer of vLLM over a tokenizer with these added tokens."""
    from vllm.renderers.base import BaseRenderer
    from vllm.renderers.deepseek_v4 import DeepseekV4Renderer

    base: Any = DeepseekV4Renderer if is_deepseek_v4 else BaseRenderer

    class Renderer(base):  # type: ignore[misc]  # one of two classes
        __init__ = object.__init__

    # Nothing else of it is used.
    Renderer.__abstractmethods__ = frozenset()
    renderer: Any = Renderer()
    renderer.tokenizer = SimpleNamespace(get_added_vocab=lambda: dict.fromkeys(added_tokens, 1))
    render_suffixes(renderer)
    return renderer


@pytest.mark.parametrize(
    ("tokens", "prompt"),
    [
        ("<|fim_prefix|> <|fim_suffix|> <|fim_middle|>", "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"),
        ("<fim_prefix> <fim_middle> <fim_suffix> <fim_pad>", "<fim_prefix>a<fim_suffix>b<fim_middle>"),
        ("<\uff5cfim\u2581begin\uff5c> <\uff5cfim\u2581hole\uff5c> <\uff5cfim\u2581end\uff5c>",) * 2,
        ("[PREFIX] [MIDDLE] [SUFFIX]", "[SUFFIX]b[PREFIX]a"),
    ],
)
def test_the_tokens_of_a_tokenizer_show_the_format(tokens: str, prompt: str) -> None:
    """Of the prompt that the model was trained with."""
    if prompt == tokens:
        prompt = tokens.replace(" ", "a", 1).replace(" ", "b", 1)

    assert _renderer(*tokens.split()).render_completion_suffix("a", "b") == prompt


def test_other_models_take_no_suffix() -> None:
    """An empty one is none; one token of a format is not the format."""
    renderer = _renderer("<|fim_prefix|>", "<|im_start|>")

    assert renderer.render_completion_suffix("a", "") == "a"
    with pytest.raises(RequestError, match="leave suffix out") as caught:
        renderer.render_completion_suffix("a", "b")
    assert caught.value.param == "suffix"


def test_a_model_that_vllm_knows_is_left_to_it() -> None:
    """Its renderer has a format of its own."""
    assert "fim" in _renderer("[PREFIX]", "[SUFFIX]", is_deepseek_v4=True).render_completion_suffix("a", "b")
