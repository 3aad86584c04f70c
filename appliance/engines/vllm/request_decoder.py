"""Decodes a request body into one of vLLM's request types, within the limits of its model."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, get_args

import msgspec
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import SchemaValidator

from appliance.core.concurrency import off_loop
from appliance.core.errors import RequestError
from appliance.core.model import ModelRequest
from appliance.engines.vllm.errors import from_validation_error, leading_field, parse_json, translate
from appliance.limits.queue import require_size

# Numbers in these fields never reach the engine as numbers, or are checked against the vocabulary.
_FREE_FIELDS = frozenset(
    {"chat_template_kwargs", "documents", "input", "messages", "metadata", "prompt", "response_format"}
    | {"structured_outputs", "text", "tools"}
)

# Fields with the texts of a request. The longer side of a score says how many pairs there are.
_INPUT_FIELDS = (
    *("prompt", "prompt_embeds", "input", "documents", "items", "queries"),
    *("text_1", "text_2", "data_1", "data_2"),
)

# The engine core receives integers of 64 bits.
_INTEGERS = range(-(2**63), 2**63)


Change = Callable[[dict[str, Any]], None]  # Any: JSON values
"""Changes the JSON of a request in place before it is decoded; raises RequestError."""


async def decode_request(
    request_type: TypeAdapter[Any],  # Any: vLLM's request types
    request: ModelRequest,
    change: Change | None = None,
) -> Any:
    """Decode as `decode` does, in a thread if the body is large."""
    return await off_loop(len(request.body), decode, request_type, request.body, change)


def decode(request: TypeAdapter[Any], body: bytes, change: Change | None = None) -> Any:  # Any: as above
    """Decode the body as a request of vLLM's; raises RequestError if it is none, or asks for more than allowed."""
    from vllm.exceptions import VLLMError

    body = _prepare(request, body, change)
    try:
        decoded = _validator(request).validate_json(body)
    except ValidationError as error:
        raise from_validation_error(error, body) from error
    except VLLMError as error:
        # It is no ValueError, so pydantic passes it on unchanged.
        translated = translate(error)
        if isinstance(translated, RequestError) and translated.param is None:
            translated.param = leading_field(str(translated), _field_adapters(request))
        raise translated from error
    except Exception as error:
        # vLLM's validators read values whose types are not checked yet.
        raise _first_type_error(request, body) from error
    if isinstance(decoded, BaseModel):
        _read_messages(decoded, body)
        _drop_empty_turns(decoded)
        if getattr(decoded, "background", None):
            # vLLM would keep the response in this process, where nobody can read it.
            raise RequestError("background needs stored responses, and this request is not stored", param="background")
        for name in decoded.model_fields_set - _FREE_FIELDS:
            if _has_large_integer(getattr(decoded, name)):
                raise RequestError(f"{name} is out of range: integers must be from -2^63 to 2^63 - 1", param=name)
    # Too many inputs, or choices.
    counts = {field: _input_count(getattr(decoded, field, None)) for field in _INPUT_FIELDS}
    field = max(counts, key=counts.__getitem__)
    require_size(counts[field], getattr(decoded, "n", None) or 1, field=field)
    return decoded


def _prepare(request: TypeAdapter[Any], body: bytes, change: Change | None) -> bytes:  # Any: as above
    """Return the body, changed, and without the nulls that clients send for what they do not set."""
    if change is None and b"null" not in body:
        return body
    members = parse_json(body)
    if not isinstance(members, dict):
        return body
    for name in _fields_with_defaults(request):
        if name in members and members[name] is None:
            del members[name]
    for message in members["messages"] if isinstance(members.get("messages"), list) else ():
        for name in list(message) if isinstance(message, dict) else ():
            if message[name] is None and name != "content":
                del message[name]
    if change is not None:
        change(members)
    return msgspec.json.encode(members)


@lru_cache
def _fields_with_defaults(request: TypeAdapter[Any]) -> frozenset[str]:  # Any: as above
    """Return the fields with a default that is not null; null is sent for them, and refused, now or when answering."""
    kind = request._type
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return frozenset()
    fields = kind.model_fields.items()
    return frozenset(
        field.alias or name for name, field in fields if not field.is_required() and field.default is not None
    )


@lru_cache
def _validator(request: TypeAdapter[Any]) -> SchemaValidator:  # Any: vLLM's request types
    """Return a validator that stops at the first faulty element of a list.

    pydantic would describe what is wrong with each element for each type that it could have been.
    """
    # With a prebuilt validator, a class would bring its own one, which does not stop.
    return SchemaValidator(_with_fail_fast(request.core_schema), _use_prebuilt=False)


def _with_fail_fast(schema: Any) -> Any:  # Any: parts of pydantic's schema, of any type
    if type(schema) in {list, tuple}:
        return type(schema)(map(_with_fail_fast, schema))
    if type(schema) is not dict:
        return schema
    changed = {key: _with_fail_fast(value) for key, value in schema.items()}
    return {**changed, "fail_fast": True} if schema.get("type") in ("list", "set", "frozenset", "tuple") else changed


def _first_type_error(request: TypeAdapter[Any], body: bytes) -> RequestError:  # Any: vLLM's request types
    """Return the error for the first field of the body with a value of the wrong type, each checked alone."""
    members = parse_json(body)
    for name, value in members.items() if isinstance(members, dict) else ():
        adapter = _field_adapters(request).get(name)
        try:
            if adapter is not None:
                _validator(adapter).validate_python(value)
        except ValidationError as error:
            return from_validation_error(error, body, (name,))
        except Exception:
            return RequestError(f"{name} has a value of the wrong type", param=name)
    return RequestError("The body is not a request for this operation: a value has the wrong type.")


@lru_cache
def _field_adapters(request: TypeAdapter[Any]) -> dict[str, TypeAdapter[Any]]:  # Any: vLLM's request types
    """Return the type of each field; for a field of several types of a union, the first one's."""
    kind: Any = request._type  # Any: a class, or a union of them, maybe annotated
    models = [kind] if isinstance(kind, type) else [each for each in get_args(kind) if isinstance(each, type)]
    return {
        field.alias or name: TypeAdapter(field.rebuild_annotation())
        for model in reversed(models)
        if issubclass(model, BaseModel)
        for name, field in model.model_fields.items()
    }


def _read_messages(request: BaseModel, body: bytes) -> None:
    """Read the arrays of messages that pydantic would check only while vLLM renders them."""
    messages = getattr(request, "messages", None)
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        for name, value in message.items() if isinstance(message, dict) else ():
            if type(value).__name__ == "ValidatorIterator":
                try:
                    message[name] = list(value)
                except ValidationError as error:
                    raise from_validation_error(error, body, ("messages", index, name)) from error


def _drop_empty_turns(request: BaseModel) -> None:
    """Drop turns of the assistant that are empty: vLLM reads their first text."""
    items = getattr(request, "input", None)
    if not isinstance(items, list) or type(request).__name__ != "ResponsesRequest":
        return
    turns = [item for item in items if getattr(item, "type", None) != "message" or getattr(item, "content", None) != []]
    if items and not turns:
        raise RequestError("input has no text in it", param="input")
    items[:] = turns


def _has_large_integer(value: Any) -> bool:  # Any: JSON values
    if isinstance(value, int):
        return value not in _INTEGERS
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, list) and any(map(_has_large_integer, value))


def _input_count(value: Any) -> int:  # Any: what a field of a request holds
    """Return the number of inputs of a field; a text is one, and so is a list of token ids."""
    # Scores take contents of several kinds.
    contents = value.get("content") if isinstance(value, dict) else value
    if not isinstance(contents, list):
        return int(contents is not None)
    return 1 if contents and isinstance(contents[0], int) else len(contents)
