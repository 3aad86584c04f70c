"""The interface of a model: operations, requests, responses, and the traits that some models have beyond it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from appliance.core.shared_traffic import SharedTraffic


class Operation(StrEnum):
    """One thing a model can be asked, whatever protocol carries it."""

    CHAT_COMPLETION = "chat_completion"
    COMPLETION = "completion"
    RESPONSE = "response"
    MESSAGE = "message"
    COUNT_TOKENS = "count_tokens"
    TOKENIZE = "tokenize"
    DETOKENIZE = "detokenize"
    TOKENIZER_INFO = "tokenizer_info"
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


COMPACTION_PATH = "/v1/responses/compact"
"""The path of requests for a summary of a response's input."""

OPENAI_PATHS: Mapping[Operation, tuple[str, ...]] = {
    Operation.CHAT_COMPLETION: ("/v1/chat/completions",),
    Operation.COMPLETION: ("/v1/completions",),
    Operation.RESPONSE: ("/v1/responses", COMPACTION_PATH),
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
The paths of each operation in OpenAI's protocol, here and at upstreams, the usual one first. The last three operations
have none, because they belong to the Open Inference Protocol: an inference is tensors (`appliance.tensors.codec`), a
prediction and an explanation are the JSON objects of version 1. `TOKENIZER_INFO` has none, because it is a GET.
"""


DIALECT_PATHS: Mapping[str, tuple[Operation, ...]] = {
    "/v1/chat/completions/batch": (Operation.CHAT_COMPLETION,),
    "/v1/fim/completions": (Operation.COMPLETION,),
    "/v1/embed": (Operation.EMBEDDING,),
    "/v2/embed": (Operation.EMBEDDING,),
    "/embed": (Operation.EMBEDDING,),
    "/embed_all": (Operation.POOLING,),
    "/embed_sparse": (Operation.EMBEDDING,),
    "/similarity": (Operation.EMBEDDING,),
    "/predict": (Operation.CLASSIFICATION,),
    "/": (Operation.EMBEDDING, Operation.CLASSIFICATION, Operation.RERANK),
    "/api/chat": (Operation.CHAT_COMPLETION,),
    "/api/generate": (Operation.CHAT_COMPLETION, Operation.COMPLETION),
    "/api/embed": (Operation.EMBEDDING,),
    "/api/embeddings": (Operation.EMBEDDING,),
    "/api/show": (),
    "/invocations": (
        *(Operation.CHAT_COMPLETION, Operation.COMPLETION, Operation.RESPONSE, Operation.EMBEDDING),
        *(Operation.RERANK, Operation.SCORE, Operation.CLASSIFICATION, Operation.POOLING),
    ),
}
"""
The paths of other protocols that take a body, with the operations that the body may ask for. A caller must be allowed
one of them before its body is read, and the one that it asks for afterwards; without any operation, it needs a key.
"""

MULTIPART_OPERATIONS = frozenset(
    {Operation.TRANSCRIPTION, Operation.TRANSLATION, Operation.IMAGE_EDIT, Operation.IMAGE_VARIATION}
)
"""The operations whose requests are multipart forms, because they hold a file; all other requests are JSON."""

TEXT_GENERATIONS = frozenset({Operation.CHAT_COMPLETION, Operation.COMPLETION, Operation.RESPONSE, Operation.MESSAGE})
"""The operations whose responses are generated token by token."""


SendChunk = Callable[[bytes], asyncio.Future[None] | None]
"""Sends a chunk of a stream without waiting; the client takes no other before the future, if there is one, is done."""


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
    model: str | None = None
    """The name by which the client calls the model, which the response repeats; None is the one in the body."""
    send: SendChunk | None = None
    """Sends whole events past those who read the response's stream, while they wait for its next chunk.

    None if a reader changes or counts the events, or needs each of them.
    """


@dataclass(frozen=True, slots=True)
class ModelResponse:
    """The response to a request: a body, or a stream of bytes that the reader closes."""

    body: bytes | AsyncGenerator[bytes]
    status: int = 200
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers by lower-case name, in addition to those of the protocol."""

    async def read(self) -> bytes:
        """Return the whole body."""
        if isinstance(self.body, bytes):
            return self.body
        async with aclosing(self.body) as chunks:
            return b"".join([chunk async for chunk in chunks])


class Model(Protocol):
    """What answers requests: one entry of `models:` at run time."""

    @property
    def operations(self) -> frozenset[Operation]:
        """The operations it supports; requests for others are refused before `handle`."""

    @property
    def warmup_request(self) -> ModelRequest | None:
        """The request whose successful response proves that the loaded model works; None if `check` proves it."""

    async def load(self, artifacts: Mapping[str, Path]) -> None:
        """Get ready to answer; `artifacts` has a local file or directory for each of the config's storages.

        It may be cancelled at any moment, and then leaves nothing running. Raises LoadError if the model cannot be
        served as the config asks.
        """

    async def check(self) -> None:
        """Return at once if the model is healthy.

        Raises:
            EngineDeadError: it cannot answer any more.
            UnavailableError: it cannot answer now, because of something elsewhere, and will recover by itself.
        """

    async def handle(self, request: ModelRequest) -> ModelResponse:
        """Answer one request; cancelling the wait or closing the response's stream stops the work behind it.

        Raises:
            RequestError: the request is at fault.
            EngineDeadError: the model cannot answer any more.
        """

    def describe(self) -> Mapping[str, Any]:  # Any: JSON values
        """Facts for listings, such as `max_model_len` in tokens; empty before it is loaded."""

    async def close(self) -> None:
        """End the requests that are running, then everything that `load` started; safe to call twice."""


@runtime_checkable
class LimitsConcurrency(Protocol):
    """A model whose engine computes only so many requests at once and queues the others."""

    @property
    def max_concurrent(self) -> int | None:
        """Requests that its engine computes at once, the others are queued; None before the load, and if unknown."""


@runtime_checkable
class Preparable(Protocol):
    """A model whose load includes work that needs none of its files."""

    def prepare(self, cache_dir: Path | None) -> None:
        """Begin in the background what needs no file; returns at once, in the main thread; a second call does nothing.

        `cache_dir` is the storage's cache, None its default. `load` works without this call, too.

        Raises:
            MissingExtraError: a package that the model needs is not installed.
        """


@runtime_checkable
class ReportsLoadTimings(Protocol):
    """A model that measures the parts of its load."""

    def load_timings(self) -> Mapping[str, float]:
        """Seconds of each part of the load by name, until now if it is running; empty before it."""


@runtime_checkable
class ReportsMemory(Protocol):
    """A model whose engine measures its memory."""

    def measured(self) -> Mapping[str, float]:
        """Sizes that its engine measured, by the names of a plan, such as `kv_tokens`; empty before the load."""


@runtime_checkable
class MayBeUnproven(Protocol):
    """A model that may be ready though no response proves that it works."""

    @property
    def unproven(self) -> str | None:
        """Why nothing proves it, for probes, without what follows ", because " for clients; None if it is proven."""


@runtime_checkable
class DependsOnModels(Protocol):
    """A model that needs other servers or models to answer."""

    def upstreams(self) -> Sequence[Mapping[str, Any]]:  # Any: JSON values
        """The state of each server or model that it needs, for probes; with no address beyond host and port."""


@runtime_checkable
class RunsOnSeveralNodes(Protocol):
    """A model that may be spread over several machines."""

    def nodes(self) -> Mapping[int, str]:
        """The state of each other machine by rank, in a word for probes; empty if there are none."""


@runtime_checkable
class FollowsAnotherNode(Protocol):
    """A model whose ranks here compute for another machine, which answers the requests."""

    @property
    def is_needed(self) -> bool:
        """Whether that machine is connected and uses the ranks of this one."""

    @property
    def leader(self) -> str:
        """The machine that answers, in words for clients."""


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """This process among those that answer together; the first one starts their engines, the others join."""

    number: int = 0
    count: int = 1
    folder: Path | None = None
    """A private directory for their sockets; None if they have no engine, or if there is only one process."""
    traffic: SharedTraffic | None = None
    """The interactive requests of all of them; None if there is only one process."""


SINGLE_FRONT_END = FrontEnd()
"""The only process."""


class Peers(Protocol):
    """The other models of the config by their names, and the other processes that answer."""

    @property
    def front_end(self) -> FrontEnd:
        """This process among them."""

    def operations(self, name: str) -> frozenset[Operation]:
        """Return the operations that the named model supports."""

    def check(self, name: str) -> None:
        """See `Model.check`; raises also if the model is not ready."""

    async def handle(self, name: str, request: ModelRequest) -> ModelResponse:
        """See `Model.handle`; raises RequestError also if the model does not support this, or not now."""
