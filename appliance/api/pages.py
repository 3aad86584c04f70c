"""Pages of lists, as OpenAI's protocol has them: the newest first, from an id on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

import msgspec

from appliance.core.errors import RequestError


class HasId(Protocol):
    """What a list has."""

    id: str


Item = TypeVar("Item", bound=HasId)


class Page(msgspec.Struct, Generic[Item], kw_only=True):
    """A part of a list."""

    object: Literal["list"] = "list"
    data: Sequence[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


def page_of(items: Sequence[Item], query: Mapping[str, str], *, max_limit: int, limit: int) -> dict[str, Any]:
    """Return the fields of the page that a query asks for with `after` and `limit`, which is `limit` by default.

    Raises:
        RequestError: there is no such page.
    """
    text = query.get("limit", str(limit))
    if not text.isdecimal() or not 1 <= int(text[:9]) <= max_limit:
        raise RequestError(f"limit is {text[:20]!r}; it must be 1 to {max_limit}", param="limit")
    ids = [item.id for item in items]
    start = 0
    if (after := query.get("after")) is not None:
        if after not in ids:
            raise RequestError(f"after is {after[:100]!r}; it must be the id of an object of this list", param="after")
        start = ids.index(after) + 1
    data = items[start : start + int(text)]
    return {
        "data": data,
        "first_id": data[0].id if data else None,
        "last_id": data[-1].id if data else None,
        "has_more": start + len(data) < len(items),
    }
