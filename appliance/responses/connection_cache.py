"""The cache of a WebSocket, from which its client continues responses that are not stored.

Source: https://developers.openai.com/api/docs/guides/websocket-mode, "connection-local cache".
"""

from __future__ import annotations

import copy

from appliance.responses.store import StoredResponse


class ConnectionCache:
    """The last responses of a connection that are not stored, together at most as large as a request may be.

    Each request has its own view of them, with the lane of the connection that the request belongs to.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        # Each with the lane that it was made in.
        self._recent: dict[str, tuple[str, StoredResponse]] = {}
        self._lane = self._continued = ""

    def view(self, lane: str) -> ConnectionCache:
        """Return the view of a new request."""
        view = copy.copy(self)
        view._lane, view._continued = lane, ""
        return view

    def get(self, response_id: str) -> StoredResponse | None:
        """Return a response, which the request continues; None if it is not cached."""
        self._continued = response_id
        _, response = self._recent.get(response_id, ("", None))
        return response

    def evict_continued(self) -> None:
        """Evict the response that the request continues, because the request failed; one of another lane stays."""
        lane, _ = self._recent.get(self._continued, (None, None))
        if lane == self._lane:
            del self._recent[self._continued]

    def put(self, response_id: str, response: StoredResponse) -> None:
        """Cache a response that has ended, and evict the oldest ones that are too large with it."""
        self._recent[response_id] = self._lane, response
        while len(self._recent) > 1 and sum(each.size for _, each in self._recent.values()) > self._max_bytes:
            del self._recent[next(iter(self._recent))]
