"""How large a request of vLLM's is: what its body holds, and how many sequences it makes once it is decoded."""

from __future__ import annotations

from typing import Any

from appliance.core.concurrency import off_loop
from appliance.core.errors import RequestError
from appliance.core.json_limits import has_more_containers
from appliance.limits import current_slot, require_size

# Where vLLM's requests have their texts; of a score, the side with more of them says how many pairs there are.
_FIELDS = ("prompt", "prompt_embeds", "input", "documents", "items", "queries", "text_1", "text_2", "data_1", "data_2")


async def require_decodable(body: bytes) -> None:
    """Return where the body of the current request has few enough objects and lists for pydantic to look at each.

    Raises:
        RequestError: it has more than its model takes.
    """
    slot = current_slot()
    if slot is not None and await off_loop(len(body), has_more_containers, body, most := slot.limits.json_containers):
        raise RequestError(
            f"The body has more than {most} objects and lists, the most that are taken in one request "
            "(limits.json_containers)",
            code="invalid_json",
        )


def require_fitting(request: Any) -> None:  # Any: one of vLLM's request types
    """Return where the request is no larger than its model takes.

    Raises:
        RequestError: it has too many inputs, or asks for too many choices.
    """
    sizes = {field: inputs_in(getattr(request, field, None)) for field in _FIELDS}
    field = max(sizes, key=sizes.__getitem__)
    require_size(sizes[field], getattr(request, "n", None) or 1, field=field)


def inputs_in(value: Any) -> int:  # Any: what a field of a request holds
    """How many inputs a field has; a text is one, and so is a list of token ids."""
    # Contents of several kinds, as scores have them.
    contents = value.get("content") if isinstance(value, dict) else value
    if not isinstance(contents, list):
        return int(contents is not None)
    return 1 if contents and isinstance(contents[0], int) else len(contents)
