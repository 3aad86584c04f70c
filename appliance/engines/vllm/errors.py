"""Errors of vLLM as errors of ours: a status, the field at fault, and a message for clients.

A message names fields as the client wrote them. It has no class names, no settings of the server, no library's text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import ValidationError

from appliance.core.errors import EngineDeadError, RequestError, UnavailableError
from appliance.engines.vllm.error_messages import ITS_NAMES, reworded, with_field
from appliance.engines.vllm.validation_errors import for_clients, invalid

if TYPE_CHECKING:
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse

DIED = "the engine died while it answered"
"""
What is said of a request that the engine's death ended.
"""


@contextmanager
def vendor_faults(texts: str | None = None, request: object = None) -> Iterator[None]:
    """Translate what vLLM raises of a request; `texts` is the field of it that holds what may be too long.

    Raises:
        RequestError: the call is at fault.
        UnavailableError: vLLM has too much to do.
        EngineDeadError: the engine core died meanwhile.
    """
    from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError

    try:
        yield
    except RequestError as error:
        raise with_field(error, request) from error.__cause__
    except EngineDeadError:
        raise
    except VllmEngineDeadError as error:
        raise EngineDeadError(DIED) from error
    except ValidationError as error:
        raise invalid(error) from error
    except Exception as error:
        fault = translated(error, texts)
        raise (with_field(fault, request) if isinstance(fault, RequestError) else fault) from error


def refusal(response: ErrorResponse, texts: str | None = None) -> RequestError:
    """An error that vLLM returned."""
    if said := reworded(response.error.message):
        return RequestError(said[0], param=said[1], status=response.error.code)
    param = texts if texts and response.error.param in ITS_NAMES else response.error.param
    return RequestError(for_clients(response.error.message, param), param=param, status=response.error.code)


def translated(error: Exception, texts: str | None) -> Exception:
    """
    The error to raise for one of vLLM's: by its own table of exceptions and statuses, itself where we are at fault.
    """
    from vllm.entrypoints.serve import create_error_response
    from vllm.exceptions import VLLMError
    from vllm.v1.engine.exceptions import EngineGenerateError

    # The engine wraps what a request made it raise.
    cause = error.__cause__ if isinstance(error, EngineGenerateError) else None
    raised = cause if isinstance(cause, Exception) else error
    if isinstance(raised, ValidationError):
        return invalid(raised)
    response = create_error_response(raised)
    if isinstance(raised, NotImplementedError):
        return RequestError("The model does not support what the request asks for.")
    if response.error.code == UnavailableError.status:
        return UnavailableError(response.error.message, retry_after=1, code="engine_busy")
    if response.error.code >= 500:
        return error
    if isinstance(raised, TypeError | OverflowError):
        response.error.message = "A value of the request has a type or a size that the engine cannot take."
    elif isinstance(raised, VLLMError) and raised.args:
        # As text it repeats the names of vLLM's own arguments.
        response.error.message = str(raised.args[0])
    return refusal(response, texts)
