"""Completions over whatever turns a prompt into text: a model of `predict`, an object with `generate`, a function."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

import msgspec

from appliance.core.errors import ApplianceError, RequestError
from appliance.core.model import ModelRequest, Operation
from appliance.core.openai_types import Json
from appliance.python_api import tensor_model
from appliance.python_api.model_adapter import PythonModelAdapter
from appliance.python_api.openai_model import Context, OpenAIGenerativeModel
from appliance.python_api.raw_request import RawRequest
from appliance.python_api.responses import InvalidResultError, describe_type
from appliance.python_api.types import Completion, CompletionChoice, CompletionChunk, CompletionRequest
from appliance.python_api.user_code import call_method, is_stream, stream_items

# Fields of a request that are not about how the text is generated.
_ENVELOPE = frozenset({"model", "prompt", "stream", "stream_options", "user", "request_id", "n", "add_special_tokens"})


class TextModel(OpenAIGenerativeModel):
    """Completes prompts with what `target` returns for them, a text or a stream of pieces of it.

    A model of `predict` gets ``{"instances": [PROMPT], "parameters": {...}}``. `generate`, or the object itself, gets
    the prompt, and those of the request's fields that it has parameters for.
    """

    def __init__(self, name: str, target: object) -> None:
        """
        Raises:
            ApplianceError: the target is none of these.
        """
        super().__init__(name)
        self._function: Callable[..., Any] | None = None
        if isinstance(target, tensor_model.Model):
            self.backing = PythonModelAdapter(target)
            return
        function = getattr(target, "generate", None) or target
        if not callable(function):
            raise ApplianceError(
                f"{name}: {describe_type(target)} completes nothing; give a model with create_completion or predict, "
                "an object with generate, or a function"
            )
        self._function = function

    async def create_completion(
        self,
        request: CompletionRequest,
        raw_request: RawRequest | None = None,
        context: Context | None = None,  # noqa: ARG002 - see OpenAIGenerativeModel
    ) -> Completion | AsyncGenerator[CompletionChunk]:
        """Continue a prompt."""
        if not isinstance(request.prompt, str):
            raise RequestError("This model takes one prompt, as a text", param="prompt")
        if (request.n or 1) > 1:
            raise RequestError("This model returns one choice; n must be 1", param="n")
        set_fields = request.model_dump(mode="json", exclude_unset=True, exclude_none=True)
        fields = {name: value for name, value in set_fields.items() if name not in _ENVELOPE}
        if self._function is None:
            headers = (
                {} if raw_request is None else {name.lower(): value for name, value in raw_request.headers.items()}
            )
            return _completion(await self._predict(request.prompt, fields, headers))
        result = await call_method(self._function, request.prompt, **_accepted(self._function, fields))
        return _chunks(result) if is_stream(result) else _completion(result)

    async def _predict(self, prompt: str, fields: Json, headers: Mapping[str, str]) -> Any:  # Any: a user's own
        assert self.backing is not None, "a text model without a function has a backing"  # noqa: S101 - ours
        body = {"instances": [prompt], **({"parameters": fields} if fields else {})}
        response = await self.backing.handle(ModelRequest(Operation.PREDICTION, msgspec.json.encode(body), headers))
        if not isinstance(response.body, bytes):
            await response.body.aclose()
            raise InvalidResultError("predict returned a stream; must return one prediction, a text")
        predictions = msgspec.json.decode(response.body).get("predictions")
        if not isinstance(predictions, list) or len(predictions) != 1:
            raise InvalidResultError("predict must return one prediction for one instance: {'predictions': [TEXT]}")
        return predictions[0]


def _accepted(function: Callable[..., Any], fields: Json) -> Json:
    """Return the fields that a function has parameters for; all if it takes any keywords."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        # Functions of extension modules may have no signature.
        return {}
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return fields
    return {name: value for name, value in fields.items() if name in parameters}


def _completion(text: Any) -> Completion:  # Any: a user's own
    return Completion(choices=[CompletionChoice(text=_text(text), finish_reason="stop")])


async def _chunks(stream: Any) -> AsyncGenerator[CompletionChunk]:  # Any: a user's own
    async with aclosing(stream_items(stream)) as items:
        async for item in items:
            yield CompletionChunk(choices=[CompletionChoice(text=_text(item))])
    yield CompletionChunk(choices=[CompletionChoice(text="", finish_reason="stop")])


def _text(value: Any) -> str:  # Any: a user's own
    if not isinstance(value, str):
        raise InvalidResultError(f"the underlying model returned {describe_type(value)}; must be a text")
    return value
