"""`hf://OWNER/NAME@REVISION/path`: models of the Hugging Face hub, or of a mirror that `HF_ENDPOINT` names.

Through the hub's own HTTP interface (https://huggingface.co/docs/hub/api), and not through huggingface_hub: its
downloads keep no bound on memory, and a process that serves tells that library to ask nobody.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from yarl import URL

from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import (
    AccessDeniedError,
    ArtifactNotFoundError,
    GatedError,
    StorageError,
    StorageUnavailableError,
)
from appliance.core.suggestions import did_you_mean, known_names
from appliance.storage.filesystems import http_client, http_errors
from appliance.storage.filesystems.base import Body, Listing, RemoteFile
from appliance.storage.filesystems.http_body import HttpResponse, next_page, part
from appliance.storage.filesystems.huggingface_auth import access_to
from appliance.storage.filesystems.huggingface_listing import absent, in_tree, siblings
from appliance.storage.filesystems.huggingface_uri import parse
from appliance.storage.filesystems.object_listing import ObjectLocation

# How long the address that the hub leads to is asked before the hub is: they are signed for minutes, and each question
# counts against the hub's limits.
_LEAD_SECONDS = 240.0

_LARGEST_PAGE = 64 << 20


class HubStore:
    """One revision of a model, a directory or a file in it."""

    def __init__(self, uri: str, settings: GlobalStorageConfig) -> None:
        self._wanted = parse(uri)
        self._uri = str(self._wanted)
        self._hub = access_to(self._wanted.owner, settings.credentials, os.environ)
        self._web = http_client.HttpClient(settings.transfer)
        self._leads: dict[str, tuple[URL, float]] = {}
        self._is_file = False

    @property
    def is_fixed(self) -> bool:
        return self._wanted.is_commit

    @property
    def credential(self) -> str:
        return self._hub.credential

    async def list(self) -> Listing:
        if os.environ.get("TRANSFORMERS_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise StorageError(f"{self._uri}: TRANSFORMERS_OFFLINE is set, so nothing may be fetched; unset it")
        model = await self._model()
        self._wanted = replace(self._wanted, revision=model["sha"])
        entries = siblings(model) or await self._tree()
        place = ObjectLocation(self._wanted.name, self._wanted.path)
        self._is_file = self._wanted.path in entries
        if self._is_file:
            names = {place.last: entries[self._wanted.path]}
        else:
            names = {
                name.removeprefix(place.prefix): entries[name] for name in entries if name.startswith(place.prefix)
            }
        if not names:
            raise ArtifactNotFoundError(f"{self._uri}: {absent(self._wanted.path, entries)}")
        files = tuple(replace(file, name=name) for name, file in names.items())
        return Listing(str(self._wanted), files, is_file=self._is_file, revision=self._wanted.revision)

    @asynccontextmanager
    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncIterator[Body]:
        async with AsyncExitStack() as stack:
            yield await self._part(file, start, end, stack)

    async def close(self) -> None:
        await self._web.close()

    async def _part(self, file: RemoteFile, start: int, end: int, stack: AsyncExitStack) -> Body:
        what = f"{self._wanted}: {file.name}"
        headers = self._headers(http_client.range_header(start, end))
        lead, until = self._leads.get(file.name, (None, 0.0))
        if lead and time.monotonic() < until:
            try:
                answer = await stack.enter_async_context(self._get(what, lead, headers))
                return part(answer, file.size, start, end)
            except (AccessDeniedError, ArtifactNotFoundError):
                # It is not valid any more, as other requests may have found out already.
                self._leads.pop(file.name, None)
        answer = await stack.enter_async_context(self._get(what, self._resolve(file), headers))
        if answer.url.origin() != self._hub.endpoint.origin():
            self._leads[file.name] = (answer.url, time.monotonic() + _LEAD_SECONDS)
        return part(answer, file.size, start, end)

    def _get(self, what: str, url: URL, headers: http_client.Headers) -> AbstractAsyncContextManager[HttpResponse]:
        return self._web.get(what, url, headers, self._hub.access, self._refusal)

    def _headers(self, more: Mapping[str, str]) -> http_client.Headers:
        return http_client.only_for(self._hub.endpoint, {**more, **self._hub.headers})

    def _resolve(self, file: RemoteFile) -> URL:
        key = ObjectLocation(self._wanted.name, self._wanted.path).key(file.name, is_file=self._is_file)
        return self._at(f"{self._wanted.name}/resolve/{self._wanted.revision}/{quote(key)}")

    def _at(self, path: str) -> URL:
        return URL(f"{str(self._hub.endpoint).rstrip('/')}/{path}", encoded=True)

    async def _model(self) -> Mapping[str, Any]:  # Any: JSON
        path = f"api/models/{self._wanted.name}/revision/{quote(self._wanted.revision, safe='')}?blobs=true"
        try:
            model = await self._json(path)
        except _NoRevisionError as error:
            raise ArtifactNotFoundError(f"{self._uri}: {await self._revisions()}") from error
        if not isinstance(model, dict) or not isinstance(model.get("sha"), str):
            raise StorageError(f"{self._uri}: the hub names no commit; check HF_ENDPOINT")
        return model

    async def _revisions(self) -> str:
        """What to say about a revision that is not there."""
        if self._wanted.is_commit:
            return "the model has no such commit; check it, or name a branch"
        refs = await self._json(f"api/models/{self._wanted.name}/refs")
        known = [ref["name"] for kind in ("branches", "tags") for ref in refs.get(kind, ())]
        revision = self._wanted.revision
        hint = did_you_mean(revision, known) or known_names("branches and tags", known)
        return f"the model has no revision {revision!r}; {hint}"

    async def _json(self, path: str) -> Any:  # Any: JSON
        return (await self._page(self._at(path)))[0]

    async def _tree(self) -> Mapping[str, RemoteFile]:
        """All files page by page, as mirrors list them whose answer about a model has no sizes."""
        path = f"api/models/{self._wanted.name}/tree/{self._wanted.revision}?recursive=true"
        url: URL | None = self._at(path)
        files: dict[str, RemoteFile] = {}
        while url is not None:
            entries, url = await self._page(url)
            files |= in_tree(self._uri, entries)
        return files

    async def _page(self, url: URL) -> tuple[Any, URL | None]:  # Any: JSON
        """An answer, and where the rest of it is."""
        headers = self._headers({"Accept-Encoding": "identity"})
        async with self._get(self._uri, url, headers) as answer:
            text = await answer.read(_LARGEST_PAGE)
        try:
            return json.loads(text), next_page(answer)
        except ValueError as error:
            raise StorageUnavailableError(
                f"{self._uri}: no answer of a hub; try again, or check HF_ENDPOINT"
            ) from error

    def _refusal(self, answer: HttpResponse, _said: str) -> StorageError | None:
        """The codes of https://huggingface.co's answers; statuses alone do not tell absent from private from gated."""
        what, name = self._uri, self._wanted.name
        page = f"{self._hub.endpoint}/{name}"
        code = answer.headers.get("X-Error-Code", "")
        said = http_errors.clean(answer.headers.get("X-Error-Message", ""))
        if code == "GatedRepo":
            return GatedError(
                f"{what}: the model is gated; ask for access at {page}, and set HF_TOKEN to a token that was granted it"
            )
        if code == "RevisionNotFound":
            return _NoRevisionError(f"{what}: the model has no such revision; check it")
        if code == "RepoNotFound":
            return ArtifactNotFoundError(
                f"{what}: no model at {page}, or a private one; check the name, "
                "or set HF_TOKEN to a token that may read it"
            )
        if answer.status in (401, 403) and said:
            return http_errors.refused(what, answer.status, said, self._hub.access)
        return None


class _NoRevisionError(ArtifactNotFoundError):
    """The model is there, and this revision of it is not."""
