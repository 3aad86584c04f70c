"""The context of a request: what becomes known of it from its first byte to its last."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import msgspec

from appliance.core.errors import RequestError

# An id of a client's is copied into logs and headers, so it must be harmless there.
SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")

CLIENT_CLOSED_REQUEST = 499
"""Status of a request whose client left before the end of the response; nginx's number, because HTTP has none."""


class RequestContext(msgspec.Struct):
    """One request; each field is None until it is known. Times are seconds of `time.monotonic()`."""

    id: str
    has_client_id: bool = False
    """Whether the client chose the id, in a header."""
    method: str = ""
    """The HTTP method; "" for gRPC."""
    path: str = ""
    """The requested path without its query, which may have secrets."""
    scheme: str = "http"
    client: tuple[str, int] | None = None
    """Host and port that the request comes from; None over a Unix socket, and for gRPC."""
    route: str | None = None
    """The path of the route, with parameters in braces."""
    protocol: str | None = None
    """`openai`, `oip_v1`, `oip_v2`, `oip_grpc`, `cohere`, `tei`, `ollama` or `sagemaker`."""
    trace: str | None = None
    """Id of the trace as 32 hexadecimal digits; None if tracing is off."""
    trace_headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Headers that propagate the trace; empty if tracing is off."""
    is_probe: bool = False
    """Whether platforms request it every few seconds."""
    began: float = msgspec.field(default_factory=time.monotonic)
    batch: str | None = None
    """Id of the batch that it is a line of."""
    response: str | None = None
    """Id of the stored response that it makes in the background."""
    key: str | None = None
    """Name of the API key, never the key itself."""
    model: str | None = None
    """Name of the model, not an alias."""
    operation: str | None = None
    admitted: float | None = None
    """When its turn in the model's queue came."""
    on_admitted: Callable[[], object] | None = None
    """Is called when its turn came, before the model gets it; an exception ends the request. None calls nothing."""
    queued: float | None = None
    """When it began to wait, for capacity here or in the engine; None if it did not, or if that is unknown."""
    scheduled: float | None = None
    """When the engine scheduled it."""
    first: float | None = None
    """Time of the first token: of the first bytes of a stream, or as the engine reports it."""
    last: float | None = None
    """Time of the last token, as the engine reports it."""
    ended: float | None = None
    is_streamed: bool = False
    status: int | None = None
    """The HTTP status that was sent; 499 if the client left before the end."""
    grpc_status: str | None = None
    """The gRPC status that was sent."""
    late_status: int | None = None
    """The status of an error that ended a stream after its status had been sent."""
    error: str | None = None
    """Class of the error that ended it."""
    refused: str | None = None
    """Why it was refused by a limit, in one word; None if it was not."""
    sequences: int = 0
    """Sequences that our engines started for it: each text of a batch, each choice of each prompt."""
    is_metered: bool = False
    """Whether one of our engines counts its tokens, so that they are not read from the response."""
    prompt_tokens: int | None = None
    """Prompt tokens of all that was computed for it; None if unknown."""
    cached_tokens: int | None = None
    """Prompt tokens that came from the prefix cache."""
    output_tokens: int | None = None
    settled_prompt_tokens: int = 0
    """Prompt tokens that are settled; a request may need several models, each of which settles its own."""
    settled_output_tokens: int = 0

    def settle(self) -> tuple[int | None, int]:
        """Return the prompt and output tokens that are not settled yet, and settle them; prompt None if not counted."""
        output = (self.output_tokens or 0) - self.settled_output_tokens
        self.settled_output_tokens += output
        if self.prompt_tokens is None:
            return None, output
        prompt = self.prompt_tokens - self.settled_prompt_tokens
        self.settled_prompt_tokens += prompt
        return prompt, output

    @property
    def outcome(self) -> int:
        """The final status, whatever was sent before; 0 if nothing was sent."""
        return self.late_status or self.status or 0


_current: ContextVar[RequestContext | None] = ContextVar("request_context", default=None)


def current_context() -> RequestContext | None:
    """Return the context of the request that this task works for; None if it works for none."""
    return _current.get()


def adopt_request_id(request_id: object) -> str:
    """Take the id in the body of the current request as its own, and return the id that applies: a header's wins.

    Raises:
        RequestError: the id cannot be copied into logs and headers.
    """
    if not (isinstance(request_id, str) and SAFE_ID.fullmatch(request_id)):
        raise RequestError("request_id must be a string of 1 to 128 visible ASCII characters", param="request_id")
    context = current_context()
    if context is None or context.has_client_id:
        return request_id if context is None else context.id
    context.id = request_id
    return request_id


@contextmanager
def use_context(request_id: str) -> Iterator[RequestContext]:
    """Create the context of a request for the block, and for tasks that are started in it."""
    context = RequestContext(request_id)
    token = _current.set(context)
    try:
        yield context
    finally:
        context.ended = time.monotonic()
        _current.reset(token)
