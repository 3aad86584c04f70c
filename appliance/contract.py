"""
What every model promises, whoever computes it: operations, calls, replies.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol


class Operation(StrEnum):
    """
    One thing a model can be asked, whatever protocol carries it.
    """

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


@dataclass(frozen=True, slots=True)
class Call:
    """
    One request: `body` is the JSON the client sent, decoded once, by whoever needs it.

    `headers` has lower-case names.
    """

    operation: Operation
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """
    The answer to a call: a body, or a stream of bytes that is closed when nobody reads it any more.
    """

    body: bytes | AsyncGenerator[bytes]
    status: int = 200
    media_type: str = "application/json"


class Model(Protocol):
    """
    What answers calls: one entry of ``models:``, alive.
    """

    @property
    def operations(self) -> frozenset[Operation]:
        """
        What it can be asked; anything else is refused before it gets here.
        """

    @property
    def proof(self) -> Call:
        """
        The call whose good answer proves that the model works; asked for when it is loaded.
        """

    async def load(self, artifacts: Mapping[str, Path]) -> None:
        """
        Get ready to answer; `artifacts` has a local directory or file for each of the section's storages.

        May be cancelled at any moment, and then leaves nothing running.

        Raises:
            LoadError: this model cannot be served as the config asks.
        """

    async def check(self) -> None:
        """
        Return at once when healthy.

        Raises:
            EngineDeadError: it cannot answer any more.
        """

    async def answer(self, call: Call) -> Reply:
        """
        Answer one call; cancelling the wait, or closing the reply's stream, stops the work behind it.

        Raises:
            CallError: the call is at fault.
            EngineDeadError: it cannot answer any more.
        """

    def describe(self) -> Mapping[str, Any]:  # Any: JSON values
        """
        Facts for listings, such as ``max_model_len`` in tokens; empty before it is loaded.
        """

    async def close(self) -> None:
        """
        End the answers under way, then everything `load` started; safe to call twice.
        """
