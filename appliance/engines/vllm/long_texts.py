"""Texts much longer than their model takes, whose end is not worth tokenizing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.renderers import TokenizeParams
    from vllm.renderers.base import BaseRenderer
    from vllm.tokenizers import TokenizerLike

# A token is about four characters of English; so many for each token that the model takes are more than enough.
_CHARACTERS = 6

# Where a text is cut, its last tokens may be others than in the whole.
_MARGIN_TOKENS = 64


def shortened(tokenizer: TokenizerLike, text: str, params: TokenizeParams) -> str:
    """The beginning of a text where that alone has more tokens than are taken, else the text.

    Either is refused, or truncated at its end, alike: a tokenizer reads all of a text first, for seconds.
    """
    most = params.max_input_tokens
    if most is None or len(text) <= 2 * most * _CHARACTERS or "left" in (params.truncation_side, _side(tokenizer)):
        return text
    beginning = text[: most * _CHARACTERS]
    enough = most + _MARGIN_TOKENS
    tokens = tokenizer(beginning, add_special_tokens=False, truncation=True, max_length=enough)
    return beginning if len(tokens["input_ids"]) >= enough else text


def shorten(renderer: BaseRenderer[Any]) -> None:
    """Have vLLM's renderer shorten each text right before it tokenizes it."""
    from vllm.utils.async_utils import make_async

    own = renderer._tokenize_prompt

    def tokenize(prompt: Any, params: TokenizeParams) -> Any:  # Any: vLLM's prompts
        return own({**prompt, "prompt": shortened(renderer.get_tokenizer(), prompt["prompt"], params)}, params)

    renderer._tokenize_prompt_async = make_async(tokenize, executor=renderer._executor)


def _side(tokenizer: TokenizerLike) -> str | None:
    return getattr(tokenizer, "truncation_side", None)
