"""The headers that each web server wants, from the config, the URI or KServe's variables."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

from yarl import URL

from appliance.config.credentials import HttpCredentials, value_of
from appliance.core.errors import StorageError
from appliance.storage.filesystems.http_client import Headers
from appliance.storage.filesystems.http_errors import AccessHint


class HttpHeaders:
    """What each host may see of what we know, for requests that begin at one URL."""

    def __init__(self, url: URL, login: Mapping[str, str], blocks: Sequence[HttpCredentials]) -> None:
        self._url = url
        self._login = login
        self._blocks = blocks

    @property
    def credential(self) -> str:
        """Which credential the first host sees."""
        if self._login:
            return "the user in the URI"
        if self._block(self._url):
            return "headers of storage.credentials.http"
        if self._variable(self._url):
            return f"headers of the variable {_variable_name(self._url)}"
        return "the query of the URI" if self._url.raw_query_string else "anonymous"

    @property
    def access(self) -> AccessHint:
        """As whom we ask, and what to do where that is not enough."""
        return AccessHint(self.credential, f"give {self._url.host} its headers in storage.credentials.http")

    def headers(self, more: Mapping[str, str]) -> Headers:
        """The headers for each URL on the way: each host gets its own, and none in the clear that came over TLS."""

        def headers_for(url: URL) -> Mapping[str, str]:
            if self._url.scheme == "https" and url.scheme != "https":
                return more
            login = self._login if url.origin() == self._url.origin() else {}
            return {**more, **self._known(url), **login}

        return headers_for

    def _known(self, url: URL) -> Mapping[str, str]:
        if block := self._block(url):
            return {name: value_of(value) or "" for name, value in block.headers.items()}
        return self._variable(url)

    def _block(self, url: URL) -> HttpCredentials | None:
        names = (f"{url.host}:{url.port}", url.host)
        return next((block for name in names for block in self._blocks if block.host.lower() == name), None)

    @staticmethod
    def _variable(url: URL) -> Mapping[str, str]:
        name = _variable_name(url)
        try:
            found = json.loads(os.environ.get(name) or "{}")
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise StorageError(f"the variable {name} is no JSON object of texts; correct it")
        return found


def _variable_name(url: URL) -> str:
    # KServe's: https://kserve.github.io/website/ (storage over HTTP with headers).
    return f"{url.host}-headers"
