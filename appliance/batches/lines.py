"""The lines of batches: requests as they are in input files, and the results as they are in output files.

Source: https://platform.openai.com/docs/api-reference/batch/request-input and request-output.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, Annotated, Any

import msgspec

from appliance.batches.objects import BatchError, new_id
from appliance.core.json_limits import has_more_members, is_deeper
from appliance.core.model import OPENAI_PATHS, ModelRequest, Operation

_OPERATIONS = (
    Operation.CHAT_COMPLETION,
    Operation.COMPLETION,
    Operation.RESPONSE,
    Operation.MESSAGE,
    Operation.EMBEDDING,
    Operation.RERANK,
    Operation.SCORE,
    Operation.CLASSIFICATION,
    Operation.POOLING,
    Operation.MODERATION,
    Operation.IMAGE,
)

ENDPOINTS: Mapping[str, Operation] = {path: operation for operation in _OPERATIONS for path in OPENAI_PATHS[operation]}
"""The paths that the lines of a batch may request: those whose requests and responses are JSON."""

_MAX_ID_LENGTH = 512

_MAX_RESULT_BYTES = 1 << 30

_RESULT_ID = "batch_req_"

# What each of our results begins with.
_FIRST = f'{{"id":"{_RESULT_ID}'.encode()


class _Body(msgspec.Struct):
    model: str | None = None
    stream: Any = None  # Any: only `true` matters here


class _Line(msgspec.Struct):
    custom_id: str
    url: str
    body: msgspec.Raw
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request of a batch; `number` counts the lines of the file from 1."""

    number: int
    custom_id: str
    url: str
    model: str | None
    body: bytes

    @property
    def operation(self) -> Operation:
        """What it requests."""
        return ENDPOINTS[self.url]

    def request(self, headers: Mapping[str, str]) -> ModelRequest:
        """Return the request to the model."""
        return ModelRequest(self.operation, self.body, {**headers, "content-type": "application/json"}, self.url)


class LineError(ValueError):
    """A line is no request; `problem` says why."""

    def __init__(self, code: str, message: str, number: int, param: str | None = None) -> None:
        super().__init__(message)
        self.problem = BatchError(code, message, param, number)


@dataclass(frozen=True, slots=True)
class LineLimits:
    """Limits of a line: of its bytes, of its nesting, and of the members of its body."""

    max_bytes: int
    max_depth: int
    max_members: int


def read_lines(file: IO[bytes], limits: LineLimits) -> Iterator[BatchLine | LineError]:
    """Yield each request of a file, or the error of its line; empty lines are skipped."""
    number = 0
    # One byte more than allowed shows that a line is too long, without the rest of it in memory.
    while raw := file.readline(limits.max_bytes + 1):
        number += 1
        if len(raw) > limits.max_bytes and not raw.endswith(b"\n"):
            while not file.readline(1 << 20).endswith(b"\n") and file.peek(1):  # type: ignore[attr-defined]  # buffered
                pass
            message = f"the line has more than {limits.max_bytes} bytes; server.max_body_bytes allows no more"
            yield LineError("line_too_long", message, number)
        elif text := raw.strip().removeprefix(b"\xef\xbb\xbf"):
            try:
                yield _parse(text, number, limits)
            except LineError as error:
                yield error


def _parse(text: bytes, number: int, limits: LineLimits) -> BatchLine:
    if is_deeper(text, limits.max_depth):
        message = f"the line is nested too deeply; server.limits.json_depth allows {limits.max_depth} levels"
        raise LineError("invalid_json_line", message, number)
    try:
        line = msgspec.json.decode(text, type=_Line)
        body = msgspec.json.decode(line.body, type=_Body)
    except msgspec.ValidationError as error:
        raise LineError("invalid_request", f"the line is no request: {error}", number) from error
    except ValueError as error:
        raise LineError("invalid_json_line", f"the line is not valid JSON: {error}", number) from error
    if has_more_members(bytes(line.body), limits.max_members):
        message = f"body has too many members; server.limits.json_members allows {limits.max_members}"
        raise LineError("invalid_request", message, number, "body")
    if line.method != "POST":
        raise LineError("invalid_method", f"method is {line.method[:20]!r}; it must be POST", number, "method")
    if line.url not in ENDPOINTS:
        raise LineError(
            "invalid_url", f"url is {line.url[:200]!r}; it must be one of: {', '.join(ENDPOINTS)}", number, "url"
        )
    if not line.custom_id or len(line.custom_id) > _MAX_ID_LENGTH:
        message = f"custom_id has {len(line.custom_id)} characters; it must have 1 to {_MAX_ID_LENGTH}"
        raise LineError("invalid_custom_id", message, number, "custom_id")
    if body.stream is True:
        message = "body.stream is true; a batch has whole responses, so leave it out"
        raise LineError("invalid_request", message, number, "body.stream")
    return BatchLine(number, line.custom_id, line.url, body.model, bytes(line.body))


@dataclass(frozen=True, slots=True)
class LineResult:
    """The response to a line, or the reason why there is none."""

    custom_id: str
    request_id: str = ""
    status: int = 0
    body: bytes = b"null"
    error: tuple[str, str] | None = None
    """A code and a message."""

    @property
    def is_success(self) -> bool:
        """Whether it belongs into the file of outputs, and not into the one of errors."""
        return self.error is None and is_success(self.status)

    def encode(self) -> bytes:
        """Return the line of the file."""
        response = {
            "status_code": self.status,
            "request_id": self.request_id,
            "body": msgspec.Raw(_one_line(self.body)),
        }
        error = None if self.error is None else dict(zip(("code", "message"), self.error, strict=True))
        line = {
            "id": new_id(_RESULT_ID),
            "custom_id": self.custom_id,
            "response": response if error is None else None,
            "error": error,
        }
        return msgspec.json.encode(line) + b"\n"


def is_success(status: int) -> bool:
    """Return whether a response with this status is no error."""
    return status < 400


def _one_line(body: bytes) -> bytes:
    """Return JSON without line breaks; what is not JSON becomes a text."""
    try:
        if b"\n" not in body and b"\r" not in body:
            msgspec.json.decode(body, type=msgspec.Raw)
            return body
        return msgspec.json.encode(msgspec.json.decode(body))
    except (ValueError, RecursionError):
        return msgspec.json.encode(body.decode(errors="replace"))


class _Response(msgspec.Struct):
    status_code: int


class _Done(msgspec.Struct):
    custom_id: Annotated[str, msgspec.Meta(min_length=1)]
    response: _Response | msgspec.UnsetType | None = msgspec.UNSET
    error: Any = msgspec.UNSET  # Any: only whether it is there matters

    def __post_init__(self) -> None:
        # A request has a `custom_id`, too.
        if self.response is self.error is msgspec.UNSET:
            raise ValueError("the line has neither `response` nor `error`")

    @property
    def has_failed(self) -> bool:
        return not isinstance(self.response, _Response) or not is_success(self.response.status_code)


class Journal:
    """A file of results that grows by whole lines; `done` has their ids, `failed` is the number of failures.

    What follows the last whole line was being written when a process died, and is removed. Its methods block on the
    disk, and may be called by any thread.
    """

    def __init__(self, path: Path) -> None:
        self.done: set[str] = set()
        self.failed = 0
        self._lock = Lock()
        self._end = 0
        self._file: IO[bytes] | None = path.open("ab+", buffering=0)
        with path.open("rb") as file:
            for raw in file:
                try:
                    result = msgspec.json.decode(raw, type=_Done)
                except ValueError:
                    break
                if not raw.endswith(b"\n"):
                    break
                self.done.add(result.custom_id)
                self.failed += result.has_failed
                self._end += len(raw)
        self._file.truncate(self._end)

    @staticmethod
    def foreign_line(path: Path) -> int | None:
        """Return the number of the first line that is no result, from 1; None if there is none.

        A last line without its end is taken for a result that was being written, if another one is before it, or if it
        begins like those of ours.
        """
        if not path.exists():
            return None
        number = 0
        with path.open("rb") as file:
            while raw := file.readline(_MAX_RESULT_BYTES):
                number += 1
                if not raw.endswith(b"\n") and len(raw) < _MAX_RESULT_BYTES:
                    return None if number > 1 or raw[: len(_FIRST)] == _FIRST[: len(raw)] else number
                try:
                    msgspec.json.decode(raw, type=_Done)
                except ValueError:
                    return number
        return None

    def append(self, result: LineResult) -> None:
        """Add a result, unless the journal is closed.

        Raises:
            OSError: it cannot be written; nothing of it is there.
        """
        data = result.encode()
        with self._lock:
            if self._file is None:
                return
            try:
                if self._file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self._file.truncate(self._end)
                raise
            self._end += len(data)
            self.done.add(result.custom_id)
            self.failed += not result.is_success

    def close(self) -> None:
        """Write everything to the disk, and close the file; safe to call twice."""
        with self._lock:
            if self._file is not None:
                os.fsync(self._file.fileno())
                self._file.close()
                self._file = None
