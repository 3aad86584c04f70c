"""Changes that a model's config makes in the requests of its clients, before the model gets them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from appliance.config.models import ModelConfig
from appliance.core.concurrency import off_loop
from appliance.core.errors import RequestError
from appliance.core.json_edit import JsonObject, NotAnObjectError
from appliance.core.model import MULTIPART_OPERATIONS, OPENAI_PATHS, ModelRequest
from appliance.core.rewrite import STREAM_OPTIONS, RequestRewriter

# Forms and tensors are no JSON objects.
_OPERATIONS = frozenset(OPENAI_PATHS) - MULTIPART_OPERATIONS


class RequestPresets:
    """The changes for each of a model's names: those of the model, and those of an alias on top."""

    def __init__(self, config: ModelConfig) -> None:
        settings = {name: config.request_settings(name) for name in config.names}
        self._rewriters: Mapping[str, RequestRewriter] = {
            name: RequestRewriter(*each) for name, each in settings.items()
        }
        self._without_usage = {name for name, each in settings.items() if any(STREAM_OPTIONS in s.drop for s in each)}

    async def apply(self, name: str, request: ModelRequest) -> ModelRequest:
        """Return the request as a client that uses `name` sends it to the model.

        Raises:
            RequestError: the body is not a JSON object, so that it cannot be changed.
        """
        rewriter = self._rewriters.get(name)
        if request.operation not in _OPERATIONS or rewriter is None or not rewriter.changes(request.operation):
            return request
        body = await off_loop(len(request.body), _rewrite, rewriter, request)
        # An upstream that rejects the option is not asked for the usage of streams.
        on_usage = None if name in self._without_usage else request.on_usage
        return replace(request, body=body, on_usage=on_usage)


def _rewrite(rewriter: RequestRewriter, request: ModelRequest) -> bytes:
    try:
        document = JsonObject(request.body)
        rewriter.rewrite(request.operation, document)
    except NotAnObjectError as error:
        raise RequestError(f"The body is not a request: {error}", code="invalid_json") from error
    return document.write()
