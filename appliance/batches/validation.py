"""The check of a batch's input before any of its requests is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from appliance.batches.lines import BatchLine, LineError
from appliance.batches.objects import BatchError
from appliance.core.errors import RequestError
from appliance.core.model import Operation
from appliance.models.manager import ModelManager
from appliance.models.state import RULES

_MAX_ERRORS = 100


class InputCheck:
    """Checks lines for the current principal; `endpoint` is the only one they may have, None is any.

    `model_fault` returns why an operation cannot be requested of a model; None if it can, as far as that is known now.
    """

    def __init__(
        self,
        model_fault: Callable[[str | None, Operation], BatchError | None],
        endpoint: str | None = None,
        max_requests: int | None = None,
    ) -> None:
        self._model_fault, self._endpoint, self._max_requests = model_fault, endpoint, max_requests
        self._ids: set[str] = set()
        self._faults: dict[tuple[str | None, Operation], BatchError | None] = {}

    def check(self, lines: Iterable[BatchLine | LineError]) -> tuple[int, list[BatchError]]:
        """Return the number of requests, and the first errors."""
        errors: list[BatchError] = []
        for line in lines:
            error = line.problem if isinstance(line, LineError) else self._fault(line)
            if error is not None:
                errors.append(error)
            if len(errors) == _MAX_ERRORS:
                break
            if self._max_requests is not None and len(self._ids) > self._max_requests:
                message = f"The file has more than {self._max_requests} requests; batches.max_requests allows no more"
                return len(self._ids), [BatchError("too_many_requests", message)]
        if not self._ids and not errors:
            errors.append(BatchError("empty_file", "The input file has no requests"))
        return len(self._ids), errors

    def _fault(self, line: BatchLine) -> BatchError | None:
        if self._endpoint not in {None, line.url}:
            message = f"url is {line.url!r}; it must be the endpoint of the batch, {self._endpoint}"
            return BatchError("mismatched_endpoint", message, "url", line.number)
        if line.custom_id in self._ids:
            message = f"custom_id {line.custom_id[:100]!r} occurs twice; it must be unique in the file"
            return BatchError("duplicate_custom_id", message, "custom_id", line.number)
        key = line.model, line.operation
        if key not in self._faults:
            self._faults[key] = self._model_fault(*key)
        if (fault := self._faults[key]) is not None:
            return BatchError(fault.code, fault.message, fault.param, line.number)
        self._ids.add(line.custom_id)
        return None


def model_fault(manager: ModelManager, model: str | None, operation: Operation) -> BatchError | None:
    """Return why an operation cannot be requested of a model of a server; see `InputCheck`."""
    try:
        status = manager.find(model)
    except RequestError as error:
        return BatchError(error.code or "invalid_model", str(error), "body.model")
    if RULES[status.state].can_answer and operation not in status.model.operations:
        message = f"the model {status.name!r} does not support {operation}"
        return BatchError("unsupported_operation", message, "body.model")
    return None
