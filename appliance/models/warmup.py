"""The warm-up request: a real response proves that a loaded model works."""

from __future__ import annotations

import asyncio
import json

from appliance.core.errors import EngineDeadError, LoadError, RequestError
from appliance.core.model import Model, ModelRequest

# The first response may include compilation.
_TIMEOUT_SECONDS = 300.0


async def run_warmup(model: Model, request: ModelRequest) -> None:
    """Send the request and check its response.

    Raises:
        LoadError: there is no response, or it is an error or empty.
    """
    try:
        response = await asyncio.wait_for(model.handle(request), _TIMEOUT_SECONDS)
    except TimeoutError as error:
        raise LoadError(f"the warm-up request had no response within {_TIMEOUT_SECONDS:.0f} seconds") from error
    except RequestError as error:
        raise LoadError(f"the warm-up request was refused: {error}") from error
    except EngineDeadError as error:
        # Not a death: a restart would repeat it.
        raise LoadError(
            "the engine died during the warm-up request, so it cannot compute this model; see the log"
        ) from error
    if isinstance(response.body, bytes) and response.status >= 400:
        raise LoadError(f"the warm-up request was refused: {response.body.decode(errors='replace')}")
    if not isinstance(response.body, bytes) or not json.loads(response.body):
        raise LoadError("the response to the warm-up request was empty")
