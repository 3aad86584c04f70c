"""The first answer of a model, which proves that it works."""

from __future__ import annotations

import asyncio
import json

from appliance.core.errors import EngineDeadError, LoadError, RequestError
from appliance.core.model import Model, ModelRequest

# A first answer can include compilation; beyond this it will not come.
_PROVE_SECONDS = 300.0


async def run_warmup(model: Model, proof: ModelRequest) -> None:
    """One real answer, from the first byte to the last.

    Raises:
        LoadError: it did not come, or is not an answer.
    """
    try:
        reply = await asyncio.wait_for(model.handle(proof), _PROVE_SECONDS)
    except TimeoutError as error:
        raise LoadError(f"the first answer did not come within {_PROVE_SECONDS:.0f} seconds") from error
    except RequestError as error:
        raise LoadError(f"the first answer was refused: {error}") from error
    except EngineDeadError as error:
        # To try again, as callers of a model that served are told, would only kill it again.
        raise LoadError(
            "the engine died over its first answer, so it cannot compute this model; see the log"
        ) from error
    if isinstance(reply.body, bytes) and reply.status >= 400:
        raise LoadError(f"the first answer was refused: {reply.body.decode(errors='replace')}")
    if not isinstance(reply.body, bytes) or not json.loads(reply.body):
        raise LoadError("the first answer was empty")
