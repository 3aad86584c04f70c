"""`hf://OWNER/NAME@REVISION/path`: models of the Hugging Face hub or a mirror, through huggingface_hub's filesystem.

The filesystem and its `HfApi` list a model. Bytes come from where the hub redirects to, over the session of fsspec's
HTTP filesystem: huggingface_hub asks the hub for each range, and has no asynchronous reads.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp
from yarl import URL

from appliance.config.credentials import CredentialsConfig, HubCredentialsConfig, block_for, value_of
from appliance.config.storage import GlobalStorageConfig
from appliance.core.concurrency import in_thread
from appliance.core.errors import ArtifactNotFoundError, GatedError, StorageError
from appliance.core.suggestions import did_you_mean, known_names
from appliance.core.uri import redact
from appliance.storage.filesystems import errors
from appliance.storage.filesystems.base import Listing, RemoteFile, known_digests
from appliance.storage.filesystems.errors import FailedResponse
from appliance.storage.filesystems.http_session import HttpSession, check_range, range_header, split_login
from appliance.storage.filesystems.hub_client import HubClient
from appliance.storage.filesystems.store import Content, FilesystemStore, Info, require_package
from appliance.storage.path_safety import decode_path

_ENDPOINT = "https://huggingface.co"

# How long a redirect of the hub is reused: its address is signed for minutes, and every request counts against the
# hub's rate limits.
_REDIRECT_SECONDS = 240.0

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
    """The address of a hub without a `/` at its end, and the headers that authenticate."""

    endpoint: str
    credential: str
    headers: Mapping[str, str] = field(repr=False)
    ca_file: Path | None = None

    def headers_for(self, url: URL) -> Mapping[str, str]:
        """Return the headers for a URL: no other host gets them."""
        return self.headers if url.origin() == URL(self.endpoint).origin() else {}


class HubStore(FilesystemStore):
    """One revision of a model, or a directory or file in it."""

    remedy = "set HF_TOKEN to a valid token that may read the model"

    _session: HttpSession
    _client: HubClient

    def __init__(self, uri: str, settings: GlobalStorageConfig) -> None:
        require_package("huggingface_hub", "hf", "Fetching hf://")
        super().__init__(uri, settings)
        self._model = parse(uri)
        self._uri = str(self._model)
        self._must_be_directory = False
        self._hub = find_auth(self._model.owner, settings.credentials, os.environ)
        self._redirects: dict[str, tuple[URL, float]] = {}
        self._resolving: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.is_fixed = self._model.is_commit
        self.credential = self._hub.credential

    async def _connect(self) -> Any:  # Any: huggingface_hub's filesystem
        filesystem_class = await in_thread(_import_filesystem)
        self._session = await HttpSession.open(
            self._settings.transfer, self._hub.headers_for, lambda _: self._hub.ca_file
        )
        self._client = HubClient(self._session, self._hub.endpoint, self._uri)
        # The session has the token. More workers would be threads of its own, and not of `HubClient`.
        return filesystem_class(endpoint=self._hub.endpoint, token=False, max_workers=1, skip_instance_cache=True)

    async def _disconnect(self) -> None:
        await self._session.close()

    async def _list(self) -> Listing:
        if os.environ.get("TRANSFORMERS_OFFLINE", "").upper() in _TRUE:
            raise StorageError(f"{self._uri}: TRANSFORMERS_OFFLINE is set, so nothing may be fetched; unset it")
        listing = await super()._list()
        return replace(listing, uri=str(self._model), revision=self._model.revision)

    async def _find(self) -> Mapping[str, Info]:
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self._hub.endpoint, token=False)
        model = self._model
        try:
            with self.translate_errors(self._uri):
                info = await self._client.call(api.model_info, model.name, revision=model.revision, files_metadata=True)
        except _NoRevisionError as error:
            raise ArtifactNotFoundError(f"{self._uri}: {await self._describe_revisions(api)}") from error
        if not isinstance(info.sha, str):
            raise StorageError(f"{self._uri}: the hub names no commit; check HF_ENDPOINT")
        self._model = replace(model, revision=info.sha)
        revision = f"{model.name}@{info.sha}"
        self._root = f"{revision}/{model.path}".rstrip("/")
        files = info.siblings or ()
        if all(isinstance(file.size, int) for file in files):
            found: Mapping[str, Info] = {f"{revision}/{file.rfilename}": _info_of(file) for file in files}
        else:
            found = await self._find_in_tree(revision)
        names = [path.removeprefix(f"{revision}/") for path in found]
        if not any(name == model.path or name.startswith(f"{model.path}/".lstrip("/")) for name in names):
            raise ArtifactNotFoundError(f"{self._uri}: {_describe_missing(model.path, names)}")
        return found

    async def _find_in_tree(self, revision: str) -> Mapping[str, Info]:
        """Return all files page by page, for mirrors whose model info has no sizes."""
        if not self._model.owner:
            raise StorageError(
                f"{self._uri}: this hub lists no model without its owner; write hf://OWNER/{self._model.name}"
            )
        found: Mapping[str, Info] = await self._client.call(self._filesystem.find, revision, detail=True)
        return found

    async def _info(self, path: str) -> Info:
        """Every file is in the listing."""
        raise FileNotFoundError(path)

    async def _describe(self, _path: str, name: str, info: Info) -> RemoteFile:
        """A large file has its SHA-256, any other git's digest of its blob."""
        sha256 = info["lfs"].sha256 if info["lfs"] else None
        digests = known_digests([("sha256", sha256), ("git-blob-sha1", None if sha256 else info["blob_id"])])
        return RemoteFile(name, info["size"], next(iter(digests.values()), None), digests)

    @asynccontextmanager
    async def _open_range(self, path: str, file: RemoteFile, start: int, end: int) -> AsyncIterator[Content]:
        async with AsyncExitStack() as stack:
            response = await self._request(stack, path, file, range_header(start, end))
            check_range(self._resource(file), response, file.size, start, end)
            yield response.content

    async def _request(
        self, stack: AsyncExitStack, path: str, file: RemoteFile, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        """Send a request to where the hub redirected before, or else to the hub, once for each file."""
        resource = self._resource(file)
        async with self._resolving[path]:
            redirect, expires = self._redirects.get(path, (None, 0.0))
            if redirect is None or time.monotonic() > expires:
                response = await stack.enter_async_context(
                    self._session.get(resource, self._resolve_url(path), headers)
                )
                self._redirects[path] = response.url, time.monotonic() + _REDIRECT_SECONDS
                return response
        try:
            return await stack.enter_async_context(self._session.get(resource, redirect, headers))
        except aiohttp.ClientResponseError as error:
            if error.status not in (401, 403, 404, 410):
                raise
        # Its signature expired; another request may have removed it already.
        self._redirects.pop(path, None)
        return await self._request(stack, path, file, headers)

    def _resolve_url(self, path: str) -> URL:
        from huggingface_hub import hf_hub_url

        model = self._model
        name = path.removeprefix(f"{model.name}@{model.revision}/")
        return URL(hf_hub_url(model.name, name, revision=model.revision, endpoint=self._hub.endpoint), encoded=True)

    async def _describe_revisions(self, api: Any) -> str:
        """Say which revisions exist instead of the requested one."""
        if self._model.is_commit:
            return "the model has no such commit; check it, or name a branch"
        refs = await self._client.call(api.list_repo_refs, self._model.name)
        known = [ref.name for ref in (*refs.branches, *refs.tags)]
        revision = self._model.revision
        hint = did_you_mean(revision, known) or known_names("branches and tags", known)
        return f"the model has no revision {revision!r}; {hint}"

    def own_error(self, resource: str, _error: BaseException, response: FailedResponse | None) -> StorageError | None:
        """Use the error codes of the hub; statuses alone do not tell missing from private from gated."""
        if response is None:
            return None
        page = f"{self._hub.endpoint}/{self._model.name}"
        code = response.headers.get("X-Error-Code", "")
        message = response.headers.get("X-Error-Message", "")
        if code == "GatedRepo":
            return GatedError(
                f"{self._uri}: the model is gated; request access at {page}, "
                "and set HF_TOKEN to a token with that access"
            )
        if code == "RevisionNotFound":
            return _NoRevisionError(f"{self._uri}: the model has no such revision; check it")
        if code == "RepoNotFound":
            return ArtifactNotFoundError(
                f"{self._uri}: no model at {page}, or a private one; check the name, "
                "or set HF_TOKEN to a token that may read it"
            )
        if response.status in (401, 403) and message:
            return errors.status_error(resource, replace(response, message=message), self)
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
    try:
        url, login = split_login(URL(address))
    except ValueError:
        url, login = URL(), {}
    if url.scheme not in ("http", "https") or not url.host:
        raise StorageError(f"HF_ENDPOINT is {redact(address)!r}, which is no web address; write https://HOST")
    endpoint = str(url).rstrip("/")
    credential, token = "token of storage.credentials.hf", value_of(block.token)
    if not token:
        credential, token = _user_token(environ)
    if token:
        return HubAuth(endpoint, credential, {"Authorization": f"Bearer {token}"}, block.ca_file)
    return HubAuth(endpoint, "the user in HF_ENDPOINT" if login else "anonymous", login, block.ca_file)


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


def _import_filesystem() -> Any:  # Any: huggingface_hub's filesystem
    from huggingface_hub import HfFileSystem

    return HfFileSystem


def _info_of(file: Any) -> Info:  # Any: huggingface_hub's RepoSibling
    """Return what the filesystem lists for a file."""
    return {"type": "file", "size": file.size, "blob_id": file.blob_id, "lfs": file.lfs}


def _describe_missing(path: str, names: Collection[str]) -> str:
    """Say which files exist instead of the requested path."""
    if not names:
        return "the model has no files; check the name and the revision"
    parts = [name.split("/") for name in names]
    paths = {"/".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1)}
    hint = did_you_mean(path, paths) or known_names("files", sorted(names)[:5])
    return f"has no {path!r}; {hint}"
