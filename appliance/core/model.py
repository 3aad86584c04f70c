"""What every model promises, whoever computes it: operations, calls, replies."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol


class Operation(StrEnum):
    """One thing a model can be asked, whatever protocol carries it."""

    CHAT_COMPLETION = "chat_completion"
    COMPLETION = "completion"
    RESPONSE = "response"
    MESSAGE = "message"
    COUNT_TOKENS = "count_tokens"
    TOKENIZE = "tokenize"
    DETOKENIZE = "detokenize"
    EMBEDDING = "embedding"
    RERANK = "rerank"
    SCORE = "score"
    CLASSIFICATION = "classification"
    POOLING = "pooling"
    MODERATION = "moderation"
    TRANSCRIPTION = "transcription"
    TRANSLATION = "translation"
    SPEECH = "speech"
    IMAGE = "image"
    IMAGE_EDIT = "image_edit"
    IMAGE_VARIATION = "image_variation"
    INFERENCE = "inference"
    PREDICTION = "prediction"
    EXPLANATION = "explanation"


OPENAI_PATHS: Mapping[Operation, tuple[str, ...]] = {
    Operation.CHAT_COMPLETION: ("/v1/chat/completions",),
    Operation.COMPLETION: ("/v1/completions",),
    Operation.RESPONSE: ("/v1/responses",),
    Operation.MESSAGE: ("/v1/messages",),
    Operation.COUNT_TOKENS: ("/v1/messages/count_tokens",),
    Operation.TOKENIZE: ("/tokenize",),
    Operation.DETOKENIZE: ("/detokenize",),
    Operation.EMBEDDING: ("/v1/embeddings",),
    Operation.RERANK: ("/v1/rerank", "/rerank", "/v2/rerank"),
    Operation.SCORE: ("/v1/score", "/score"),
    Operation.CLASSIFICATION: ("/v1/classify", "/classify"),
    Operation.POOLING: ("/v1/pooling", "/pooling"),
    Operation.MODERATION: ("/v1/moderations",),
    Operation.TRANSCRIPTION: ("/v1/audio/transcriptions",),
    Operation.TRANSLATION: ("/v1/audio/translations",),
    Operation.SPEECH: ("/v1/audio/speech",),
    Operation.IMAGE: ("/v1/images/generations",),
    Operation.IMAGE_EDIT: ("/v1/images/edits",),
    Operation.IMAGE_VARIATION: ("/v1/images/variations",),
}
"""
Where clients of OpenAI's protocol ask for each operation, the usual place first; so it is with us, and with every
upstream. The last three operations have none: they are a model's own, in the Open Inference Protocol. An inference
is tensors (`appliance.tensors.codec`), a prediction and an explanation are the JSON objects of its first version.
"""


MULTIPART_OPERATIONS = frozenset(
    {Operation.TRANSCRIPTION, Operation.TRANSLATION, Operation.IMAGE_EDIT, Operation.IMAGE_VARIATION}
)
"""
The operations whose requests are forms, because there is a file in them; those of all others are JSON.
"""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One request for an operation; `body` is what the client sent, and is decoded once, where it is needed.

    The body is JSON, or multipart for `MULTIPART_OPERATIONS`, as the content type in `headers` says (names in lower
    case). `path` is one of `OPENAI_PATHS`, "" for the first; `query` is the query string. `is_streamed` says whether
    the client requested a stream.
    """

    operation: Operation
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    path: str = ""
    query: str = ""
    is_streamed: bool = False
    on_usage: Callable[[bytes], None] | None = None
    """Receives server-sent events with usage that the stream to the client omits; None if tokens are not counted."""


@dataclass(frozen=True, slots=True)
class ModelResponse:
    """The response to a request: a body, or a stream of bytes that the reader closes.

    `headers`, by lower-case name, are added to those of the protocol.
    """

    body: bytes | AsyncGenerator[bytes]
    status: int = 200
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


class Model(Protocol):
    """What answers calls: one entry of ``models:``, alive."""

    @property
    def operations(self) -> frozenset[Operation]:
        """What it can be asked; anything else is refused before it gets here."""

    @property
    def warmup_request(self) -> ModelRequest | None:
        """The call whose good answer proves that the model works; asked for when it is loaded.

        None where a good `check` does.
        """

    async def load(self, artifacts: Mapping[str, Path]) -> None:
        """Get ready to answer; `artifacts` has a local directory or file for each of the section's storages.

        May be cancelled at any moment, and then leaves nothing running.

        Raises:
            LoadError: this model cannot be served as the config asks.
        """

    async def check(self) -> None:
        """Return at once when healthy.

        Raises:
            EngineDeadError: it cannot answer any more.
            UnavailableError: it cannot answer now, for want of something elsewhere, and will by itself.
        """

    async def handle(self, call: ModelRequest) -> ModelResponse:
        """Answer one call; cancelling the wait, or closing the reply's stream, stops the work behind it.

        Raises:
            CallError: the call is at fault.
            EngineDeadError: it cannot answer any more.
        """

    def describe(self) -> Mapping[str, Any]:  # Any: JSON values
        """Facts for listings, such as ``max_model_len`` in tokens; empty before it is loaded."""

    async def close(self) -> None:
        """End the answers under way, then everything `load` started; safe to call twice."""


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """
    The place of this process among those that answer together: the first one starts their engines, the others join.
    """

    number: int = 0
    count: int = 1
    folder: Path | None = None
    """Where they meet, a directory that nobody else may enter; None where they have no engine, or there is only one."""


SINGLE_FRONT_END = FrontEnd()
"""
The only process.
"""


class Peers(Protocol):
    """Whom a model lives with: the other models of the config, by their names, and the other processes."""

    @property
    def front_end(self) -> FrontEnd:
        """This process among them."""

    def operations(self, name: str) -> frozenset[Operation]:
        """What the named model can be asked."""

    def check(self, name: str) -> None:
        """Return at once when the named model answers.

        Raises:
            EngineDeadError: it never will again.
            UnavailableError: it does not answer now.
        """

    async def handle(self, name: str, call: ModelRequest) -> ModelResponse:
        """Have the named model answer, as `Model.handle` does.

        Raises:
            CallError: it cannot do this, cannot do it now, or the call itself is at fault.
            EngineDeadError: it died over it.
        """
