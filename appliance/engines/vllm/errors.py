"""vLLM's and pydantic's errors as errors for clients: a status, the field at fault, a message.

A message names fields as the client wrote them. Class names, server settings and the text of libraries are removed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import BaseModel, ValidationError

from appliance.core.conversation_items import content_parts
from appliance.core.errors import (
    CONTEXT_LENGTH_EXCEEDED,
    ApplianceError,
    EngineDeadError,
    RequestError,
    UnavailableError,
)

if TYPE_CHECKING:
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse

# Messages of vLLM about options of its own: the pattern, the field at fault, the message for clients.
_REPLACEMENTS = (
    (
        re.compile(r"tool[-_ ]call[-_ ]parser|auto[-_]tool[-_]choice", re.IGNORECASE),
        "tool_choice",
        "tool_choice must be none where there are tools: the config of this model sets no tool_call_parser",
    ),
    (
        re.compile(r"Template\.render\(\) got multiple values for keyword argument '(\w+)'"),
        "chat_template_kwargs",
        r"chat_template_kwargs must not have \1, which is set already",
    ),
    (
        re.compile(r"default chat template is no longer allowed"),
        None,
        "The model has no chat template, so it takes no messages; send a text as prompt or input",
    ),
)

# vLLM's names for a text that is too long. No request has such a field.
_VLLM_TEXT_FIELDS = frozenset({"input_text", "input_tokens"})

# Messages of vLLM about a request that is longer than the context, or has a limit that is.
_TOO_LONG = re.compile(r"maximum context length|^max_\w+=\d+ cannot be greater than max_model_len")

# In a request that has an input, the prompt is the name of a template.
_TEXT_FIELDS = ("messages", "input", "prompt", "documents")

_LEADING_WORD = re.compile(r"[`'\"]?(\w+)[`'\"]?(?:\.\w+)* ")

# Types in JSON's words, with the types of pydantic's errors that stand for them.
_EXPECTED_TYPES = {
    kind: expected
    for expected, kinds in {
        "a string": ("string_type",),
        "an integer": ("int_type", "int_parsing", "int_from_float"),
        "a number": ("float_type", "float_parsing"),
        "true or false": ("bool_type", "bool_parsing"),
        "an array": ("list_type", "iterable_type", "tuple_type"),
        "an object": ("dict_type", "model_type", "model_attributes_type", "dataclass_type", "mapping_type"),
        "null": ("none_required",),
    }.items()
    for kind in kinds
}

_MESSAGES = {"missing": "is missing", "extra_forbidden": "is no field of this request"}

# With these fields a client says which of several types an object has.
_TYPE_TAGS = frozenset({"type", "role"})

# Describing more errors than this takes longer than the request is worth.
_MAX_ERRORS = 10_000

# Environment variables and command-line options, which only the operator of the server can change.
_OPERATOR_SETTINGS = re.compile(r"\bVLLM_[A-Z_]+|(?<![\w-])--[a-z]|environment variable")

_PRINTED_CLASS = re.compile(r"<(?:class|enum) '(?:\w+\.)*(\w+)'>")
_PRINTED_OBJECT = re.compile(r"\{'.*\}", re.DOTALL)
_MAX_MESSAGE_CHARACTERS = 1000


# Messages of vLLM about a part of a message, which they do not locate: its type, if they name it.
_PART_ERROR = re.compile(r"is not a multimodal model|^Unsupported chat content part type: '(\w+)'")
_MEDIA = re.compile(r"image|audio|video|file")


@contextmanager
def translate_errors(request: object = None, body: bytes | None = None) -> Iterator[None]:
    """Raise what vLLM raises as RequestError, UnavailableError if it is overloaded, or EngineDeadError.

    The `param` of an error is a field of `request`, one of vLLM's types, or a path in its `body`.
    """
    try:
        yield
    except Exception as error:
        translated = error if isinstance(error, ApplianceError) else translate(error)
        if isinstance(translated, RequestError) and body is not None and (located := _part_error(translated, body)):
            translated = located
        elif isinstance(translated, RequestError) and isinstance(request, BaseModel):
            fields = type(request).model_fields
            translated.param = _request_field(translated.param, request) or leading_field(str(translated), fields)
        if translated is error:
            raise
        raise translated from error


def translate(error: Exception) -> Exception:
    """Return the error to raise for one of vLLM's, by vLLM's own table of statuses; `error` itself if it is a 500."""
    from vllm.entrypoints.serve import create_error_response
    from vllm.exceptions import VLLMError
    from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError
    from vllm.v1.engine.exceptions import EngineGenerateError

    # The engine wraps what it raised for one request.
    cause = error.__cause__ if isinstance(error, EngineGenerateError) else None
    raised = cause if isinstance(cause, Exception) else error
    if isinstance(raised, VllmEngineDeadError):
        return EngineDeadError("the engine died while it answered")
    if isinstance(raised, ValidationError):
        return from_validation_error(raised)
    if isinstance(raised, NotImplementedError):
        return RequestError("The model does not support what the request asks for.")
    response = create_error_response(raised)
    if response.error.code == UnavailableError.status:
        return UnavailableError(response.error.message, retry_after=1, code="engine_busy")
    if response.error.code >= 500:
        return error
    if isinstance(raised, TypeError | OverflowError):
        response.error.message = "A value of the request has a type or a size that the engine cannot take."
    elif isinstance(raised, VLLMError) and raised.args:
        # str() of it repeats the names of vLLM's own arguments.
        response.error.message = str(raised.args[0])
    return from_error_response(response)


def from_error_response(response: ErrorResponse) -> RequestError:
    """Return the error for one that vLLM returned."""
    error = response.error
    for pattern, field, text in _REPLACEMENTS:
        if found := pattern.search(error.message):
            return RequestError(found.expand(text), param=field, status=error.code)
    code = CONTEXT_LENGTH_EXCEEDED if _TOO_LONG.search(error.message) else None
    return RequestError(_clean(error.message, error.param), param=error.param, status=error.code, code=code)


def _part_error(error: RequestError, body: bytes) -> RequestError | None:
    """Return the error with the path of the part that it is about; None if it is about none."""
    if (found := _PART_ERROR.search(str(error))) is None:
        return None
    for path, kind in content_parts(parse_json(body)):
        if kind == found[1] if found[1] else isinstance(kind, str) and _MEDIA.search(kind):
            return RequestError(f"{path}: this model does not read the type {kind!r}; leave it out", param=path)
    return None


def leading_field(message: str, fields: Mapping[str, object]) -> str | None:
    """Return the field that a message begins with, None if it begins with something else."""
    found = _LEADING_WORD.match(message)
    if found is not None and found[1] in fields:
        return found[1]
    return "structured_outputs" if "for structured outputs" in message and "structured_outputs" in fields else None


def _request_field(param: str | None, request: BaseModel) -> str | None:
    if param in _VLLM_TEXT_FIELDS:
        return next((name for name in _TEXT_FIELDS if name in type(request).model_fields), None)
    if param == "logprobs" and getattr(request, "top_logprobs", None):
        return "top_logprobs"
    if param == "response_format" and getattr(request, "response_format", None) is None:
        if getattr(request, "structured_outputs", None) is not None:
            return "structured_outputs"
        if getattr(getattr(request, "text", None), "format", None) is not None:
            return "text.format"
    return param


def from_validation_error(
    error: ValidationError, body: bytes | None = None, prefix: Sequence[str | int] = ()
) -> RequestError:
    """Return the error for what pydantic found wrong with `body`, or with the part of it at `prefix`.

    Without a body, fields are told from the types that pydantic tried by the case of their names.
    """
    if error.error_count() > _MAX_ERRORS:
        return RequestError("The body is not a request for this operation: most of its values have a wrong type.")
    value: Any = parse_json(body) if body is not None else None  # Any: JSON values
    for part in prefix:
        value = value[part]
    field_errors = [_field_error(each, value, has_body=body is not None) for each in error.errors(include_url=False)]
    chosen = _best_match(field_errors)
    # As OpenAI writes it: `messages[0].content`.
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in (*prefix, *chosen[0].path))
    path, text = "".join(parts).removeprefix("."), _describe(chosen)
    return RequestError(f"{path} {text}" if path else f"The body {text}", param=path or None)


def parse_json(body: bytes) -> Any:  # Any: JSON values
    """Return the JSON value of a body, None if it has none."""
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None


def _clean(message: str, param: str | None) -> str:
    """Return a message of vLLM's without what a client cannot act on."""
    message = _PRINTED_CLASS.sub(r"\1", _PRINTED_OBJECT.sub("{...}", message))
    sentences = [text for text in re.split(r"(?<=[.!?])\s+", message) if not _OPERATOR_SETTINGS.search(text)]
    text = " ".join(sentences) or f"{param or 'What the request asks for'} is not allowed by this server."
    return text if len(text) <= _MAX_MESSAGE_CHARACTERS else f"{text[:_MAX_MESSAGE_CHARACTERS]}..."


@dataclass(frozen=True, slots=True)
class _FieldError:
    """One of pydantic's errors: `path` leads to the value; `branch` is the object's path with the types tried."""

    path: tuple[str | int, ...]
    branch: tuple[str | int, ...]
    kind: str
    details: Any

    @property
    def is_other_type(self) -> bool:
        """Whether the object's tag names another type than the one that was tried."""
        return self.kind == "literal_error" and bool(self.path) and self.path[-1] in _TYPE_TAGS

    @property
    def owner(self) -> tuple[str | int, ...]:
        """Where pydantic reports it, without the last field: the object, as one of the types that were tried."""
        return tuple(self.details["loc"][:-1])


def _field_error(details: Any, value: Any, *, has_body: bool) -> _FieldError:  # Any: pydantic's details, JSON values
    # A location mixes fields with the types that pydantic tried, which the body does not contain.
    location, kind = details["loc"], details["type"]
    path: list[str | int] = []
    end = 0
    for index, part in enumerate(location):
        if not has_body:
            is_field = isinstance(part, int) or part.islower()
        elif isinstance(part, int):
            is_field = isinstance(value, list) and part < len(value)
        else:
            is_field = isinstance(value, dict) and part in value
        if is_field or (kind == "missing" and index == len(location) - 1):
            path.append(part)
            end = index
            value = value[part] if is_field and has_body else None
    return _FieldError(tuple(path), tuple(location[:end]), kind, details)


def _best_match(errors: Sequence[_FieldError]) -> Sequence[_FieldError]:
    """Return the errors of the union member that fits best, all about one value.

    pydantic reports the errors of each member. The best one fails deepest in the request and matches the object's tag.
    """
    # Where the tag names another type, what else is wrong with the object as this type is beside the point.
    others = {error.owner for error in errors if error.is_other_type}
    errors = [error for error in errors if not _is_below(error, others)]
    depth = max(len(error.path) for error in errors)
    branches: defaultdict[tuple[str | int, ...], list[_FieldError]] = defaultdict(list)
    for error in errors:
        if len(error.path) == depth:
            branches[error.branch].append(error)
    matching = [branch for branch in branches.values() if not any(error.is_other_type for error in branch)]
    if matching:
        # A type whose fields are present fits better than one whose fields are missing.
        chosen = min(matching, key=lambda branch: (sum(error.kind == "missing" for error in branch), len(branch)))
        # Types that pydantic has no name for share a branch: the fields that are present tell which one is meant.
        first = next((error for error in chosen if error.kind != "missing"), chosen[0])
    else:
        chosen = [error for branch in branches.values() for error in branch if error.is_other_type]
        first = chosen[0]
    return [error for error in chosen if error.path == first.path]


def _is_below(error: _FieldError, owners: AbstractSet[tuple[str | int, ...]]) -> bool:
    owner = error.owner
    return not (error.is_other_type or owner not in owners) or any(owner[:end] in owners for end in range(len(owner)))


def _describe(errors: Sequence[_FieldError]) -> str:
    kind, details = errors[0].kind, errors[0].details
    if kind == "literal_error":
        texts = (error.details.get("ctx", {}).get("expected", "") for error in errors)
        expected = [word for text in texts for word in re.findall(r"'[^']*'|\b\d+\b", str(text))]
        return f"must be one of: {', '.join(dict.fromkeys(expected))}"
    if kind in _EXPECTED_TYPES:
        expected = [_EXPECTED_TYPES[error.kind] for error in errors if error.kind in _EXPECTED_TYPES]
        return f"must be {' or '.join(dict.fromkeys(expected))}"
    if kind in _MESSAGES:
        return _MESSAGES[kind]
    if kind == "json_invalid":
        return f"is not valid JSON: {details['ctx']['error']}"
    if kind == "value_error":
        return f"is refused: {_clean(str(details['ctx']['error']), None)}"
    if kind.startswith("is_instance") or "callable" in kind:
        return "has a value of the wrong type"
    return _clean(details["msg"].replace("Input should", "must"), None)
