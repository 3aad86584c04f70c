"""Bodies as requests of vLLM's."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import SchemaValidator

from appliance.core.errors import RequestError
from appliance.engines.vllm.error_messages import field_named
from appliance.engines.vllm.errors import translated
from appliance.engines.vllm.request_size import require_fitting
from appliance.engines.vllm.validation_errors import invalid, json_of

# Fields that hold schemas, messages and other JSON, whose numbers never reach the engine as numbers, and tokens, which
# are held against the vocabulary.
_FREE_FIELDS = frozenset(
    {"chat_template_kwargs", "documents", "input", "messages", "metadata", "prompt", "response_format"}
    | {"structured_outputs", "text", "tools"}
)

# The engine core is sent integers of 64 bits.
_INTEGERS = range(-(2**63), 2**63)


def decode(request: TypeAdapter[Any], body: bytes) -> Any:  # Any: vLLM's request types
    """Decode the body as a request of vLLM's; that of a large one is work for a thread.

    Raises:
        RequestError: it is none, or asks for more than the model takes in one; `param` is the field at fault.
    """
    from vllm.exceptions import VLLMError

    try:
        decoded = _validator(request).validate_json(body)
    except ValidationError as error:
        raise invalid(error, body) from error
    except VLLMError as error:
        # It is no ValueError, so pydantic lets it through as it is.
        fault = translated(error, None)
        if isinstance(fault, RequestError) and fault.param is None:
            fault.param = field_named(str(fault), _fields(request))
        raise fault from error
    except Exception as error:
        # vLLM's validators look into values whose types nobody has checked yet.
        raise _misfit(request, body) from error
    if isinstance(decoded, BaseModel):
        _read_messages(decoded, body)
        _require_texts(decoded)
        _require_integers(decoded)
    require_fitting(decoded)
    return decoded


@lru_cache
def _validator(request: TypeAdapter[Any]) -> SchemaValidator:  # Any: vLLM's request types
    """What decodes the request, and stops at the first faulty element of a list.

    pydantic would go on, and describe what is wrong with each element for each type that it could have been.
    """
    # A class that was used before would bring its own validator, which goes on.
    return SchemaValidator(_failing_fast(request.core_schema), _use_prebuilt=False)


def _failing_fast(schema: Any) -> Any:  # Any: parts of pydantic's schema, of any type
    if type(schema) in {list, tuple}:
        return type(schema)(map(_failing_fast, schema))
    if type(schema) is not dict:
        return schema
    changed = {key: _failing_fast(value) for key, value in schema.items()}
    return {**changed, "fail_fast": True} if schema.get("type") in ("list", "set", "frozenset", "tuple") else changed


def _misfit(request: TypeAdapter[Any], body: bytes) -> RequestError:  # Any: vLLM's request types
    """The first field of the body whose value is of the wrong type, each looked at alone."""
    members = json_of(body)
    if isinstance(members, dict):
        for name, value in members.items():
            adapter = _fields(request).get(name)
            try:
                if adapter is not None:
                    _validator(adapter).validate_python(value)
            except ValidationError as error:
                return invalid(error, body, (name,))
            except Exception:
                return RequestError(f"{name} has a value of the wrong type", param=name)
    return RequestError("The body is not a request for this operation: a value has the wrong type.")


@lru_cache
def _fields(request: TypeAdapter[Any]) -> dict[str, TypeAdapter[Any]]:  # Any: vLLM's request types
    """What checks each field of a request, or of the first type of a union that has it."""
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
                    raise invalid(error, body, ("messages", index, name)) from error


def _require_texts(request: BaseModel) -> None:
    """
    Leave out turns of the assistant that have nothing in them, and refuse those that have no text: vLLM reads one.
    """
    items = getattr(request, "input", None)
    if not isinstance(items, list) or type(request).__name__ != "ResponsesRequest":
        return
    empty = {id(item) for item in items if _is_empty_turn(item)}
    for index, item in enumerate(items):
        contents = getattr(item, "content", None) if getattr(item, "type", None) == "message" else None
        if contents and not hasattr(contents[0], "text"):
            place = f"input[{index}].content[0]"
            raise RequestError(f"{place} must be a text; the model reads no other turns of an assistant", param=place)
    kept = [item for item in items if id(item) not in empty]
    if items and not kept:
        raise RequestError("input has no text in it", param="input")
    items[:] = kept


def _is_empty_turn(item: object) -> bool:
    is_message = isinstance(item, BaseModel) and getattr(item, "type", "") == "message"
    return is_message and getattr(item, "content", None) == []


def _require_integers(request: BaseModel) -> None:
    for name in request.model_fields_set - _FREE_FIELDS:
        if _has_large_integer(getattr(request, name)):
            raise RequestError(f"{name} is out of range: integers must be from -2^63 to 2^63 - 1", param=name)


def _has_large_integer(value: Any) -> bool:  # Any: JSON values
    if isinstance(value, int):
        return value not in _INTEGERS
    if isinstance(value, dict):
        return any(map(_has_large_integer, value.values()))
    return isinstance(value, list) and any(map(_has_large_integer, value))
