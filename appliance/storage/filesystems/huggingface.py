"""`hf://OWNER/NAME@REVISION/path`: models of the Hugging Face hub, or of a mirror that `HF_ENDPOINT` names.

Through the hub's HTTP API (https://huggingface.co/docs/hub/api), and not through huggingface_hub, whose downloads have
no memory bound, and which a serving process puts into offline mode.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from yarl import URL

from appliance.config.credentials import CredentialsConfig, HubCredentialsConfig, block_for, value_of
from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import (
    AccessDeniedError,
    ArtifactNotFoundError,
    GatedError,
    StorageError,
    StorageUnavailableError,
)
from appliance.core.suggestions import did_you_mean, known_names
from appliance.core.uri import redact
from appliance.storage.filesystems import errors
from appliance.storage.filesystems.base import Body, Listing, RemoteFile, known_digests
from appliance.storage.filesystems.errors import AccessHint
from appliance.storage.filesystems.http_client import (
    HeadersFor,
    HttpClient,
    HttpResponse,
    only_for,
    range_header,
    split_login,
)
from appliance.storage.filesystems.object_store import ObjectLocation
from appliance.storage.path_safety import decode_path

_ENDPOINT = "https://huggingface.co"

# How long a redirect of the hub is reused: its address is signed for minutes, and every request counts against the
# hub's rate limits.
_REDIRECT_SECONDS = 240.0

_MAX_PAGE_BYTES = 64 << 20

# https://huggingface.co/docs/huggingface_hub/package_reference/hf_uris; KServe writes `:` before a revision.
_LOCATION = re.compile(
    r"(?P<name>(?:[^/@:]+/)?[^/@:]+)"
    r"(?:[@:](?P<revision>refs/(?:pr/\d+|convert/[\w.-]+)|[^/]*))?"
    r"(?:/(?P<path>.*))?",
    re.DOTALL,
)
_NAME = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9](?:[\w.-]*\w)?(?:/\w(?:[\w.-]*\w)?)?", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)\w[\w.+/-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")

# Prefixes of repositories that are no models.
_OTHER_KINDS = frozenset({"datasets", "spaces", "buckets", "kernels"})

_TRUE = frozenset({"1", "ON", "YES", "TRUE"})


@dataclass(frozen=True, slots=True)
class HubUri:
    """A file or directory in one revision of a model; `path` is "" for all of it."""

    name: str
    revision: str
    path: str

    def __str__(self) -> str:
        # KServe's `:` if `@` would make the name look like the user of a URI, which is removed from logs.
        separator = "@" if "/" in self.name else ":"
        return f"hf://{self.name}{separator}{self.revision}" + (f"/{self.path}" if self.path else "")

    @property
    def owner(self) -> str:
        """The owner of the model; "" for the oldest ones."""
        return self.name.rpartition("/")[0]

    @property
    def is_commit(self) -> bool:
        """Whether the revision cannot move."""
        return bool(_COMMIT.fullmatch(self.revision))


@dataclass(frozen=True, slots=True)
class HubAuth:
    """The address of a hub, and the headers that authenticate."""

    endpoint: URL
    credential: str
    headers: Mapping[str, str] = field(repr=False)

    @property
    def hint(self) -> AccessHint:
        """The credential, and what to do if it is not sufficient."""
        return AccessHint(self.credential, "set HF_TOKEN to a valid token that may read the model")


class HubStore:
    """One revision of a model, or a directory or file in it."""

    def __init__(self, uri: str, settings: GlobalStorageConfig) -> None:
        self._model = parse(uri)
        self._uri = str(self._model)
        self._hub = find_auth(self._model.owner, settings.credentials, os.environ)
        self._client = HttpClient(settings.transfer)
        self._redirects: dict[str, tuple[URL, float]] = {}
        self._is_file = False

    @property
    def is_fixed(self) -> bool:
        return self._model.is_commit

    @property
    def credential(self) -> str:
        return self._hub.credential

    async def list(self) -> Listing:
        if os.environ.get("TRANSFORMERS_OFFLINE", "").upper() in _TRUE:
            raise StorageError(f"{self._uri}: TRANSFORMERS_OFFLINE is set, so nothing may be fetched; unset it")
        info = await self._model_info()
        self._model = replace(self._model, revision=info["sha"])
        entries = _files_of_model(info) or await self._tree()
        location = self._location
        self._is_file = self._model.path in entries
        if self._is_file:
            names = {location.name: entries[self._model.path]}
        else:
            prefix = location.prefix
            names = {name.removeprefix(prefix): entries[name] for name in entries if name.startswith(prefix)}
        if not names:
            raise ArtifactNotFoundError(f"{self._uri}: {_describe_missing(self._model.path, entries)}")
        files = tuple(replace(file, name=name) for name, file in names.items())
        return Listing(str(self._model), files, is_file=self._is_file, revision=self._model.revision)

    @asynccontextmanager
    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncIterator[Body]:
        async with AsyncExitStack() as stack:
            yield await self._open_range(file, start, end, stack)

    async def close(self) -> None:
        await self._client.close()

    @property
    def _location(self) -> ObjectLocation:
        return ObjectLocation(self._model.name, self._model.path)

    async def _open_range(self, file: RemoteFile, start: int, end: int, stack: AsyncExitStack) -> Body:
        resource = f"{self._model}: {file.name}"
        headers = self._headers(range_header(start, end))
        redirect, expires = self._redirects.get(file.name, (None, 0.0))
        if redirect and time.monotonic() < expires:
            try:
                response = await stack.enter_async_context(self._get(resource, redirect, headers))
                return response.range_body(file.size, start, end)
            except (AccessDeniedError, ArtifactNotFoundError):
                # Its signature expired; another request may have removed it already.
                self._redirects.pop(file.name, None)
        key = self._location.key_of(file.name, is_file=self._is_file)
        url = self._at(f"{self._model.name}/resolve/{self._model.revision}/{quote(key)}")
        response = await stack.enter_async_context(self._get(resource, url, headers))
        if response.url.origin() != self._hub.endpoint.origin():
            self._redirects[file.name] = (response.url, time.monotonic() + _REDIRECT_SECONDS)
        return response.range_body(file.size, start, end)

    def _get(self, resource: str, url: URL, headers: HeadersFor) -> AbstractAsyncContextManager[HttpResponse]:
        return self._client.get(resource, url, headers, self._hub.hint, self._to_error)

    def _headers(self, more: Mapping[str, str]) -> HeadersFor:
        return only_for(self._hub.endpoint, {**more, **self._hub.headers})

    def _at(self, path: str) -> URL:
        return URL(f"{str(self._hub.endpoint).rstrip('/')}/{path}", encoded=True)

    async def _model_info(self) -> Mapping[str, Any]:  # Any: JSON
        path = f"api/models/{self._model.name}/revision/{quote(self._model.revision, safe='')}?blobs=true"
        try:
            info, _ = await self._page(self._at(path))
        except _NoRevisionError as error:
            raise ArtifactNotFoundError(f"{self._uri}: {await self._describe_revisions()}") from error
        if not isinstance(info, dict) or not isinstance(info.get("sha"), str):
            raise StorageError(f"{self._uri}: the hub names no commit; check HF_ENDPOINT")
        return info

    async def _describe_revisions(self) -> str:
        """Say which revisions exist instead of the requested one."""
        if self._model.is_commit:
            return "the model has no such commit; check it, or name a branch"
        refs, _ = await self._page(self._at(f"api/models/{self._model.name}/refs"))
        known = [ref["name"] for kind in ("branches", "tags") for ref in refs.get(kind, ())]
        revision = self._model.revision
        hint = did_you_mean(revision, known) or known_names("branches and tags", known)
        return f"the model has no revision {revision!r}; {hint}"

    async def _tree(self) -> Mapping[str, RemoteFile]:
        """Return all files page by page, for mirrors whose model info has no sizes."""
        path = f"api/models/{self._model.name}/tree/{self._model.revision}?recursive=true"
        url: URL | None = self._at(path)
        files: dict[str, RemoteFile] = {}
        while url is not None:
            entries, url = await self._page(url)
            files |= _files_of_tree(self._uri, entries)
        return files

    async def _page(self, url: URL) -> tuple[Any, URL | None]:  # Any: JSON
        """Return the JSON of a response, and the URL of the next page."""
        headers = self._headers({"Accept-Encoding": "identity"})
        async with self._get(self._uri, url, headers) as response:
            text = await response.read(_MAX_PAGE_BYTES)
        try:
            return json.loads(text), response.next_page()
        except ValueError as error:
            raise StorageUnavailableError(
                f"{self._uri}: the response is not a hub's; try again, or check HF_ENDPOINT"
            ) from error

    def _to_error(self, response: HttpResponse) -> StorageError | None:
        """Use the error codes of the hub; statuses alone do not tell missing from private from gated."""
        resource, page = self._uri, f"{self._hub.endpoint}/{self._model.name}"
        code = response.headers.get("X-Error-Code", "")
        message = errors.clean(response.headers.get("X-Error-Message", ""))
        if code == "GatedRepo":
            return GatedError(
                f"{resource}: the model is gated; request access at {page}, "
                "and set HF_TOKEN to a token with that access"
            )
        if code == "RevisionNotFound":
            return _NoRevisionError(f"{resource}: the model has no such revision; check it")
        if code == "RepoNotFound":
            return ArtifactNotFoundError(
                f"{resource}: no model at {page}, or a private one; check the name, "
                "or set HF_TOKEN to a token that may read it"
            )
        if response.status in (401, 403) and message:
            return errors.status_error(resource, response.status, message, self._hub.hint)
        return None


class _NoRevisionError(ArtifactNotFoundError):
    """The model exists, and the revision does not."""


def parse(uri: str) -> HubUri:
    """Parse an `hf://` URI; the default revision is `main`."""
    found = _LOCATION.fullmatch(uri.partition("://")[2])
    name, revision, path = found.group("name", "revision", "path") if found else ("", None, None)
    # A path after a name of one part would be read as its second part, unless a revision separates them.
    is_ambiguous = "/" not in name and revision is None and path
    if not _NAME.fullmatch(name) or name.partition("/")[0] in _OTHER_KINDS or is_ambiguous:
        raise StorageError(f"{redact(uri)}: no name of a model; write hf://OWNER/NAME@REVISION/path")
    revision = "main" if revision is None else unquote(revision)
    if not _REVISION.fullmatch(revision):
        raise StorageError(f"{redact(uri)}: no revision; write a branch, a tag or a commit: hf://{name}@REVISION")
    return HubUri(name, revision, decode_path(uri, path or "", "model"))


def find_auth(owner: str, config: CredentialsConfig, environ: Mapping[str, str]) -> HubAuth:
    """Return the config's endpoint and token for an owner's models, or those of the user's variables and files."""
    block = block_for(config.hf, "owner", owner) or HubCredentialsConfig()
    address = block.endpoint_url or environ.get("HF_ENDPOINT") or _ENDPOINT
    endpoint, login = split_login(URL(address.rstrip("/")))
    if endpoint.scheme not in ("http", "https") or not endpoint.host:
        raise StorageError(f"HF_ENDPOINT is {redact(address)!r}, which is no web address; write https://HOST")
    credential, token = "token of storage.credentials.hf", value_of(block.token)
    if not token:
        credential, token = _user_token(environ)
    if token:
        return HubAuth(endpoint, credential, {"Authorization": f"Bearer {token}"})
    return HubAuth(endpoint, "the user in HF_ENDPOINT" if login else "anonymous", login)


def _user_token(environ: Mapping[str, str]) -> tuple[str, str | None]:
    """https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables"""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := environ.get(name, "").strip():
            return name, token
    if environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in _TRUE:
        return "anonymous", None
    home = environ.get("HF_HOME") or f"{environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    file = environ.get("HF_TOKEN_PATH") or f"{home}/token"
    try:
        return "the token of hf auth login", Path(file).expanduser().read_text().strip() or None
    except (OSError, ValueError, RuntimeError):
        return "anonymous", None


def _files_of_model(info: Mapping[str, Any]) -> Mapping[str, RemoteFile] | None:  # Any: JSON
    """Return the files in the model info by name, or None if it has no sizes."""
    entries = info.get("siblings") or ()
    if not all(isinstance(entry.get("size"), int) for entry in entries):
        return None
    return {
        entry["rfilename"]: _to_file(
            entry["rfilename"], entry["size"], entry.get("blobId"), (entry.get("lfs") or {}).get("sha256")
        )
        for entry in entries
    }


def _files_of_tree(uri: str, entries: Any) -> Mapping[str, RemoteFile]:  # Any: JSON
    """Return the files in a page of a model's tree by name."""
    try:
        return {
            entry["path"]: _to_file(entry["path"], entry["size"], entry.get("oid"), (entry.get("lfs") or {}).get("oid"))
            for entry in entries
            if entry["type"] == "file"
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{uri}: the hub lists no files; check HF_ENDPOINT") from error


def _to_file(name: str, size: int, blob: str | None, sha256: str | None) -> RemoteFile:
    """A large file has its SHA-256, any other git's digest of its blob."""
    digests = known_digests([("sha256", sha256), ("git-blob-sha1", None if sha256 else blob)])
    return RemoteFile(name, size, next(iter(digests.values()), None), digests)


def _describe_missing(path: str, names: Collection[str]) -> str:
    """Say which files exist instead of the requested path."""
    if not names:
        return "the model has no files; check the name and the revision"
    parts = [name.split("/") for name in names]
    paths = {"/".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1)}
    hint = did_you_mean(path, paths) or known_names("files", sorted(names)[:5])
    return f"has no {path!r}; {hint}"
