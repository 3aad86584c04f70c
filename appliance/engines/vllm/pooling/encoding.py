"""How numbers are written: as JSON's own, or as base64 in JSON."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from appliance.core.errors import RequestError
from appliance.core.model import ModelRequest, ModelResponse
from appliance.engines.vllm.serving import Answer


class _Format(msgspec.Struct):
    encoding_format: str = "float"


def require_json(encoding_format: str) -> None:
    """Refuse vLLM's answers in plain bytes, whose shape only headers of its own server tell.

    Raises:
        RequestError: the format is one of those.
    """
    if encoding_format not in ("float", "base64"):
        raise RequestError(f"encoding_format is {encoding_format!r}; must be float or base64", param="encoding_format")


@dataclass(frozen=True, slots=True)
class JsonEncoding:
    """Another answer, for calls that want it in JSON."""

    answer: Answer

    async def __call__(self, call: ModelRequest) -> ModelResponse:
        """Answer one call; see `Answer`."""
        try:
            require_json(msgspec.json.decode(call.body, type=_Format).encoding_format)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"The body is not a request: {error}") from error
        return await self.answer(call)
