"""The cache of a WebSocket, from which its client continues responses that are not stored.

Source: https://developers.openai.com/api/docs/guides/websocket-mode, "connection-local cache".
"""

from __future__ import annotations

from appliance.responses.store import StoredResponse


class ConnectionCache:
    """The last responses of a connection that are not stored, together at most as large as a request may be."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._recent: dict[str, StoredResponse] = {}
        self._continued = ""

    def begin_request(self) -> None:
        """Note that the current request continues nothing yet."""
        self._continued = ""

    def get(self, response_id: str) -> StoredResponse | None:
        """Return a response, which the current request continues; None if it is not cached."""
        self._continued = response_id
        return self._recent.get(response_id)

    def evict_continued(self) -> None:
        """Evict the response that the current request continues, because the request failed."""
        self._recent.pop(self._continued, None)

    def put(self, response_id: str, response: StoredResponse) -> None:
        """Cache a response that has ended, and evict the oldest ones that are too large with it."""
        self._recent[response_id] = response
        while len(self._recent) > 1 and sum(each.size for each in self._recent.values()) > self._max_bytes:
            del self._recent[next(iter(self._recent))]
