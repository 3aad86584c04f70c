"""Prompts of code models for the text between a prompt and a suffix, in the format that their tokenizer shows."""

from __future__ import annotations

from collections.abc import Container, Sequence

from appliance.core.errors import RequestError

_PROMPT, _SUFFIX = "{prompt}", "{suffix}"

# The parts of each format; those that are neither of the two texts are tokens, which identify it.
_FORMATS: Sequence[Sequence[str]] = (
    # Qwen2.5-Coder (https://github.com/QwenLM/Qwen2.5-Coder), CodeGemma, Granite 4.
    ("<|fim_prefix|>", _PROMPT, "<|fim_suffix|>", _SUFFIX, "<|fim_middle|>"),
    # StarCoder (https://arxiv.org/abs/2305.06161), StarCoder2, StableCode, Granite Code.
    ("<fim_prefix>", _PROMPT, "<fim_suffix>", _SUFFIX, "<fim_middle>"),
    # DeepSeek-Coder (https://arxiv.org/abs/2401.14196), its second version, DeepSeek-V3.
    ("<\uff5cfim\u2581begin\uff5c>", _PROMPT, "<\uff5cfim\u2581hole\uff5c>", _SUFFIX, "<\uff5cfim\u2581end\uff5c>"),
    # Codestral, after mistral-common's `encode_fim`; the suffix comes first.
    ("[SUFFIX]", _SUFFIX, "[PREFIX]", _PROMPT),
)


def fill_in_middle(added_tokens: Container[str], prompt: str, suffix: str) -> str:
    """Return the prompt of a model whose tokenizer has these added tokens; raise RequestError if it knows no format."""
    texts = {_PROMPT: prompt, _SUFFIX: suffix}
    for parts in _FORMATS:
        if all(part in texts or part in added_tokens for part in parts):
            return "".join(texts.get(part, part) for part in parts)
    if not suffix:
        return prompt
    raise RequestError(
        "suffix needs a model with tokens for fill-in-the-middle, such as Qwen2.5-Coder, and this model's tokenizer "
        "has none that are known; leave suffix out",
        param="suffix",
    )
