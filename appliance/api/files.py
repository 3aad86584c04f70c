"""Routes of OpenAI's files, which are the input and the output of batches.

Source: https://platform.openai.com/docs/api-reference/files.
"""

from __future__ import annotations

import asyncio
import os
import re
import unicodedata
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import IO, Any, Literal

import msgspec
from litestar import Response, delete, get, post
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath

from appliance.api import PROTOCOL
from appliance.api.disconnect import AnyRequest, StreamingResponse, before_body
from appliance.api.openai import PREFIXES
from appliance.api.pages import Page, page_of
from appliance.auth import Authorizer, current_principal
from appliance.batches.lines import ENDPOINTS
from appliance.batches.objects import Batch, Expiry, FileObject, new_id, now
from appliance.batches.runner import BatchRunner
from appliance.batches.store import CONTENT, BatchStore
from appliance.config.server import ServerConfig
from appliance.core import multipart
from appliance.core.errors import RequestError, SlowRequestBodyError
from appliance.core.stored_objects import DamagedObjectError, disk_errors

_OPT = {PROTOCOL: "openai"}

_CHUNK_BYTES = 256 * 1024

# Of a field that is no file.
_MAX_FIELD_BYTES = 4096


class NoSuchObjectError(RequestError):
    """There is no such file or batch, or another key has it."""

    status = 404
    code = "not_found"


class DeletedFile(msgspec.Struct):
    """The answer to the deletion of a file."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class FilePage(Page[FileObject]):
    """A page of files."""


class BatchAccess:
    """The store for the current caller; `runner` is None if the config has no batches."""

    def __init__(self, runner: BatchRunner | None, authorizer: Authorizer) -> None:
        self._runner, self._authorizer = runner, authorizer

    def open(self) -> tuple[BatchStore, str]:
        """Return the store and the owner of the caller's objects.

        Raises:
            UnauthenticatedError: the caller has no key.
            ForbiddenError: the key is not for batches.
            NoSuchObjectError: the config has no batches.
        """
        self._authorizer.require_key()
        if self._runner is None:
            raise NoSuchObjectError(
                "This server has no files and batches; the key `batches` of its config turns them on", code="no_batches"
            )
        principal = current_principal()
        self._authorizer.require_any([*ENDPOINTS.values()])
        return self._runner.store, "" if principal is None else principal.name

    async def file(self, file_id: str, *, param: str | None = None) -> tuple[BatchStore, str, FileObject]:
        """Return a file of the caller."""
        store, owner = self.open()
        file = await asyncio.to_thread(store.file, owner, file_id)
        if file is None:
            raise NoSuchObjectError(f"There is no file {file_id[:100]!r}", param=param)
        return store, owner, file

    async def batch(self, batch_id: str) -> Batch:
        """Return a batch of the caller."""
        store, owner = self.open()
        batch = await asyncio.to_thread(store.batch, owner, batch_id)
        if batch is None:
            raise NoSuchObjectError(f"There is no batch {batch_id[:100]!r}")
        return batch

    async def add_batch(self, batch: Batch) -> None:
        """Add a batch of the caller, if its input file exists, and the caller may request its endpoint."""
        self._authorizer.require_operation(ENDPOINTS[batch.endpoint])
        store, owner, _ = await self.file(batch.input_file_id, param="input_file_id")
        await asyncio.to_thread(store.add_batch, owner, batch)
        if self._runner is not None:
            self._runner.wake()


def routes(access: BatchAccess, server: Callable[[], ServerConfig]) -> list[BaseRouteHandler]:
    """Return the routes of files."""

    @post([prefix + "/v1/files" for prefix in PREFIXES], status_code=200, opt=_OPT, request_max_body_size=None)
    async def upload_file(request: AnyRequest) -> FileObject:
        async with before_body(request):
            store, owner = access.open()
            content_type = request.headers.get("content-type", "")
            if not multipart.is_form(content_type) or "content-encoding" in request.headers:
                message = f"Content-Type is {content_type[:80]!r}; this route takes an uncompressed multipart/form-data"
                raise RequestError(message, status=415)
            path = await asyncio.to_thread(store.new_upload)
        try:
            upload = _Upload(path, content_type, store.config.max_file_bytes)
            await upload.receive(request, server().timeouts.body_seconds)
            file = upload.file(store.config.keep_hours)
            await asyncio.to_thread(store.add_file, owner, file, path)
            return file
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    @get([prefix + "/v1/files" for prefix in PREFIXES], opt=_OPT)
    async def list_files(request: AnyRequest) -> FilePage:
        store, owner = access.open()
        return _page(await asyncio.to_thread(store.files, owner), request.query_params)

    @get([prefix + "/v1/files/{file_id:str}" for prefix in PREFIXES], opt=_OPT)
    async def show_file(file_id: FromPath[str]) -> FileObject:
        _, _, file = await access.file(file_id)
        return file

    @delete([prefix + "/v1/files/{file_id:str}" for prefix in PREFIXES], status_code=200, opt=_OPT)
    async def delete_file(file_id: FromPath[str]) -> DeletedFile:
        store, owner = access.open()
        with suppress(DamagedObjectError):
            await access.file(file_id)
        await asyncio.to_thread(store.delete, owner, file_id)
        return DeletedFile(file_id)

    @get([prefix + "/v1/files/{file_id:str}/content" for prefix in PREFIXES], opt=_OPT)
    async def download_file(file_id: FromPath[str]) -> Response[Any]:  # Any: as Litestar has it
        store, owner, file = await access.file(file_id)
        with disk_errors():
            content = await asyncio.to_thread(lambda: store.path(owner, file.id, CONTENT).open("rb"))
        headers = {"content-length": str(file.bytes), "content-type": "application/jsonl"}
        return StreamingResponse(_chunks(content), headers=headers)

    return [upload_file, list_files, show_file, delete_file, download_file]


def _page(files: Sequence[FileObject], query: Mapping[str, str]) -> FilePage:
    if (purpose := query.get("purpose")) is not None:
        files = [file for file in files if file.purpose == purpose]
    if (order := query.get("order", "desc")) not in {"asc", "desc"}:
        raise RequestError(f"order is {order[:40]!r}; it must be asc or desc", param="order")
    return FilePage(**page_of(files if order == "desc" else files[::-1], query, max_limit=10_000, limit=10_000))


async def _chunks(content: IO[bytes]) -> AsyncGenerator[bytes]:
    with content:
        while chunk := await asyncio.to_thread(content.read, _CHUNK_BYTES):
            yield chunk


class _Upload:
    """A form with a file, which is written to the disk while it arrives."""

    def __init__(self, path: Path, content_type: str, max_bytes: int) -> None:
        self._path, self._max_bytes = path, max_bytes
        try:
            self._form = multipart.FormReader(content_type)
        except multipart.FormError as error:
            raise RequestError(str(error), code="invalid_form") from error
        self._fields: dict[str, bytes] = {}
        self._filename: str | None = None
        self._size = 0

    async def receive(self, request: AnyRequest, seconds: float) -> None:
        """Read the whole form; no piece of it may take longer than `seconds`.

        Raises:
            RequestError: it is no form, or too large.
        """
        with disk_errors():
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            async with before_body(request), aclosing(request.stream()) as stream:
                while data := await self._next(stream, seconds):
                    await asyncio.to_thread(self._feed, data, file)
            await asyncio.to_thread(self._feed, b"", file)

    async def _next(self, stream: AsyncGenerator[bytes], seconds: float) -> bytes:
        try:
            async with asyncio.timeout(seconds):
                return await anext(stream, b"")
        except TimeoutError as error:
            text = f"The body did not go on for server.timeouts.body_seconds of {seconds:g}"
            raise SlowRequestBodyError(text) from error

    def file(self, keep_hours: float) -> FileObject:
        """Return what was uploaded.

        Raises:
            RequestError: a field is missing or wrong.
        """
        purpose = self._text("purpose")
        if purpose != "batch":
            raise RequestError(f"purpose is {purpose[:40]!r}; this server takes files for batch", param="purpose")
        if self._filename is None:
            raise RequestError("file is missing; it must be a file of JSON lines", param="file")
        seconds, expiry = int(keep_hours * 3600), {}
        for name in ("anchor", "seconds"):
            if (field := f"expires_after[{name}]") in self._fields:
                expiry[name] = self._text(field)
        if expiry:
            try:
                seconds = msgspec.convert(expiry, Expiry, strict=False).seconds
            except msgspec.ValidationError as error:
                raise RequestError(f"expires_after is wrong: {error}", param="expires_after") from error
        return FileObject(
            id=new_id("file-"),
            bytes=self._size,
            created_at=now(),
            expires_at=now() + seconds,
            filename=self._filename,
            purpose="batch",
        )

    def _feed(self, data: bytes, file: IO[bytes]) -> None:
        try:
            for field, piece in self._form.feed(data):
                if field.is_file and field.name == "file":
                    self._filename = _safe_name(field.filename or "")
                    self._size += len(piece)
                    if self._size > self._max_bytes:
                        text = f"The file is larger than batches.max_file_bytes of {self._max_bytes} bytes"
                        raise RequestError(text, param="file", status=413)
                    with disk_errors():
                        file.write(piece)
                else:
                    value = self._fields[field.name] = self._fields.get(field.name, b"") + piece
                    if len(value) > _MAX_FIELD_BYTES:
                        raise RequestError(f"The field {field.name[:80]!r} is too long", param=field.name[:80])
            if not data:
                with disk_errors():
                    file.flush()
        except multipart.FormError as error:
            raise RequestError(str(error), code="invalid_form") from error

    def _text(self, name: str) -> str:
        if name not in self._fields:
            raise RequestError(f"{name} is missing in the form", param=name)
        return self._fields[name].decode(errors="replace")


def _safe_name(filename: str) -> str:
    """Return the last component of a path of any system, without control characters and line separators."""
    name = "".join(each for each in filename if unicodedata.category(each) not in {"Cc", "Zl", "Zp"})
    name = re.split(r"[/\\]", name)[-1].strip()
    return "file.jsonl" if name in {"", ".", ".."} else name
