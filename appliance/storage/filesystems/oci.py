"""`oci://REGISTRY/NAME:TAG@sha256:...`: artifacts and images of a container registry, as an fsspec filesystem.

Each layer is a file: one with a title (ORAS, https://oras.land) or a path (ModelPack, https://github.com/modelpack/model-spec)
has that name; a tar has the name of its digest, and is unpacked after the download. Of an image, such as KServe's
modelcars, `/models` is kept. The protocol is https://github.com/opencontainers/distribution-spec/blob/main/spec.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import platform
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

import aiohttp
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.http import HTTPFileSystem
from yarl import URL

from appliance.config.credentials import block_for
from appliance.config.storage import GlobalStorageConfig
from appliance.core.concurrency import in_thread
from appliance.core.errors import AccessDeniedError, ArtifactCorruptError, ArtifactNotFoundError, StorageError
from appliance.core.uri import redact
from appliance.storage import bounded_json
from appliance.storage.filesystems import errors, network
from appliance.storage.filesystems.base import Listing, RemoteFile
from appliance.storage.filesystems.http_session import HttpSession, range_header, read_body
from appliance.storage.filesystems.oci_login import DOCKER_HUB, REMEDY, OciLogin, find_login
from appliance.storage.filesystems.store import Content, FilesystemStore, Info

_SEGMENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    r"(?P<registry>(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(?::\d+)?)"
    rf"/(?P<name>{_SEGMENT}(?:/{_SEGMENT})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?/?",
    re.ASCII,
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

# The parameters of a WWW-Authenticate header: RFC 9110, section 11.2.
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')

_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)

# The specification asks registries to refuse larger manifests.
_MAX_MANIFEST_BYTES = 4 << 20
_MAX_TOKEN_BYTES = 1 << 20
_MAX_ERROR_BYTES = 4096
_MAX_LAYER_BYTES = 8 << 40

_IMAGE_LAYER = re.compile(r"application/vnd\.(?:oci\.image\.layer|docker\.image\.rootfs)\..*")
_TAR = re.compile(r".*\btar(?:[.+](?:(?P<gz>gzip|gz)|(?P<zst>zstd)))?")

# ORAS, ModelPack, and ModelPack's former name.
_NAMES = ("org.opencontainers.image.title", "org.cncf.model.filepath", "org.cnai.model.filepath")
_IS_DIRECTORY = "io.deis.oras.content.unpack"

_MODELS = "models"

# Read by the filesystem itself.
_FAILURES = range(400, 600)

# The names of processors in images.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class OciReference:
    """An artifact or image in a registry; `digest` is None if only its tag is known."""

    registry: str
    name: str
    tag: str
    digest: str | None

    @classmethod
    def parse(cls, uri: str) -> OciReference:
        """Parse an `oci://` URI; the default tag is `latest`."""
        found = _REFERENCE.fullmatch(uri.partition("://")[2])
        if not found:
            raise StorageError(f"{redact(uri)}: names no artifact; write oci://REGISTRY/NAME:TAG")
        registry, name, tag, digest = found.group("registry", "name", "tag", "digest")
        if not re.search(r"[.:]|^localhost$", registry):
            raise StorageError(f"{redact(uri)}: names no registry; write oci://{DOCKER_HUB}/{registry}/{name}")
        if registry == DOCKER_HUB and "/" not in name:
            name = f"library/{name}"
        return cls(registry, name, tag or "latest", digest)

    def __str__(self) -> str:
        return f"oci://{self.registry}/{self.name}" + (f"@{self.digest}" if self.digest else f":{self.tag}")

    @property
    def endpoint(self) -> URL:
        """The address of the registry, without TLS on the loopback, as for all clients of registries."""
        if self.registry == DOCKER_HUB:
            return URL("https://registry-1.docker.io")
        url = URL(f"https://{self.registry}")
        is_loopback = re.fullmatch(r"localhost|::1|127\.\d+\.\d+\.\d+", url.host or "")
        return URL(f"http://{self.registry}") if is_loopback else url


class OciFileSystem(AsyncFileSystem):  # type: ignore[misc] # fsspec has no types
    """The layers of one artifact or image.

    `reference` has the digest of the manifest or index that its tag names, once that was requested. `endpoint` is the
    address of a mirror, whose path precedes the name of the repository; None is the registry itself.
    `client_kwargs` are those of its `aiohttp.ClientSession`.
    """

    protocol = "oci"
    cachable = False

    def __init__(
        self,
        uri: str,
        login: OciLogin = OciLogin(),  # noqa: B008 - it is frozen
        endpoint: URL | None = None,
        client_kwargs: Mapping[str, Any] = MappingProxyType({}),  # Any: of aiohttp
        **options: object,
    ) -> None:
        super().__init__(**options)
        self.reference = OciReference.parse(uri)
        self.login = login
        self._endpoint = endpoint or self.reference.endpoint
        self._authorization = f"Bearer {login.registry_token}" if login.registry_token else ""
        web = HTTPFileSystem(skip_instance_cache=True, client_kwargs=dict(client_kwargs))
        self._session = HttpSession(web, self._headers_for, uses_netrc=False)
        self._resolving, self._logging_in = asyncio.Lock(), asyncio.Lock()
        self._layers: Mapping[str, Info] | None = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" if path.startswith("oci://") else f"/{path.strip('/')}"

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        return {"uri": path}

    async def _info(self, path: str, **_: object) -> Info:
        path, layers = self._strip_protocol(path), await self._resolve()
        if path not in layers and path != "/" and not any(name.startswith(f"{path}/") for name in layers):
            raise FileNotFoundError(path)
        return layers.get(path) or {"name": path, "size": 0, "type": "directory"}

    async def _find(self, path: str, detail: bool = False, **_: object) -> Any:
        directory, layers = self._strip_protocol(path).rstrip("/") + "/", await self._resolve()
        found = {name: layer for name, layer in layers.items() if f"{name}/".startswith(directory)}
        return found if detail else list(found)

    async def _ls(self, path: str, detail: bool = True, **_: object) -> Any:
        directory = self._strip_protocol(path).rstrip("/") + "/"
        found = {directory + name.removeprefix(directory).partition("/")[0] for name in await self._find(path)}
        return [await self._info(name) for name in sorted(found)] if detail else sorted(found)

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: object) -> bytes:
        first, last, _step = slice(start, end).indices((await self._info(path))["size"])
        if first >= last:
            return b""
        async with self.open_range(path, first, last) as response:
            return await read_body(str(self.reference), response, last - first)

    @asynccontextmanager
    async def open_range(self, path: str, start: int, end: int) -> AsyncIterator[aiohttp.ClientResponse]:
        """Request a part of a layer."""
        sha256 = (await self._info(path))["sha256"]
        async with self._get(f"blobs/sha256:{sha256}", range_header(start, end)) as response:
            yield response

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def _resolve(self) -> Mapping[str, Info]:
        """Return the layers by their paths."""
        async with self._resolving:
            if self._layers is None:
                digest, manifest = await self._manifest(self.reference.digest or self.reference.tag)
                if "manifests" in manifest:
                    _, manifest = await self._manifest(self._choose(manifest["manifests"]))
                if "layers" not in manifest:
                    raise self._corrupt("its index leads to another index")
                self._layers = self._parse_layers(manifest)
                self.reference = replace(self.reference, digest=digest)
            return self._layers

    async def _manifest(self, reference: str) -> tuple[str, Mapping[str, Any]]:  # Any: JSON
        """Return the digest and the contents of a manifest or index by its tag or digest."""
        accepted = {"Accept": ", ".join((*_MANIFESTS, *_INDEXES))}
        async with self._get(f"manifests/{reference}", accepted) as response:
            body = await read_body(str(self.reference), response, _MAX_MANIFEST_BYTES)
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if _DIGEST.fullmatch(reference) and digest != reference:
            raise self._corrupt(f"the manifest {reference} has the digest {digest}")
        try:
            manifest = bounded_json.parse(body)
            media = manifest.get("mediaType") or response.headers.get("Content-Type", "").partition(";")[0]
            key, other = ("manifests", "layers") if media in _INDEXES else ("layers", "manifests")
            # With both, two clients could see two things under one digest (CVE-2021-41190).
            if media not in (*_MANIFESTS, *_INDEXES) or not isinstance(manifest[key], list) or other in manifest:
                raise ValueError(media)
        except (ValueError, KeyError, AttributeError) as error:
            raise self._corrupt(f"the manifest {reference} is of no known kind") from error
        return digest, manifest

    def _choose(self, entries: Sequence[Any]) -> str:  # Any: JSON
        """Return the digest of the image for this machine in an index."""
        wanted = _ARCHITECTURES.get(platform.machine(), platform.machine())
        try:
            # Builders add attestations as images of an unknown platform.
            found = {
                entry["digest"]: (entry.get("platform") or {}).get("architecture", wanted)
                for entry in entries
                if "vnd.docker.reference.type" not in (entry.get("annotations") or {})
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise self._corrupt("its index is broken") from error
        fitting = [digest for digest, known in found.items() if known == wanted or len(found) == 1]
        if not fitting:
            known = ", ".join(sorted(map(str, found.values()))) or "nothing"
            raise ArtifactNotFoundError(f"{self.reference}: has no image for {wanted}, only for {known}")
        if not _DIGEST.fullmatch(str(fitting[0])):
            raise self._corrupt("its index is broken")
        return str(fitting[0])

    def _parse_layers(self, manifest: Mapping[str, Any]) -> Mapping[str, Info]:  # Any: JSON
        layers: dict[str, Info] = {}
        for number, entry in enumerate(manifest["layers"]):
            try:
                layer = _parse_layer(number, entry)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise self._corrupt(f"layer {number} of its manifest is broken ({error})") from error
            if layer["name"] in layers:
                raise self._corrupt(f"two of its layers are named {layer['name'][1:]!r}")
            layers[layer["name"]] = layer
        return layers

    def _corrupt(self, problem: str) -> ArtifactCorruptError:
        return ArtifactCorruptError(f"{self.reference}: {problem}; the model is refused")

    @asynccontextmanager
    async def _get(self, path: str, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request to the registry, and log in if it asks for that."""
        prefix = self._endpoint.raw_path.rstrip("/")
        url = self._endpoint.with_path(f"/v2{prefix}/{self.reference.name}/{path}", encoded=True)
        for may_log_in in (True, False):
            async with self._session.get(str(self.reference), url, headers, accepted=_FAILURES) as response:
                if may_log_in and response.status == HTTPStatus.UNAUTHORIZED:
                    # No other host may choose where a password is sent.
                    if response.url.origin() == self._endpoint.origin():
                        await self._log_in(response)
                    continue
                await self._check(response)
                yield response
                return

    def _headers_for(self, url: URL) -> Mapping[str, str]:
        is_registry = url.origin() == self._endpoint.origin()
        return {"Authorization": self._authorization} if is_registry and self._authorization else {}

    async def _log_in(self, refused: aiohttp.ClientResponse) -> None:
        """Find the Authorization header that the registry asks for.

        https://distribution.github.io/distribution/spec/auth/token/
        """
        async with self._logging_in:
            if refused.request_info.headers.get("Authorization", "") != self._authorization:
                # Another request has logged in already.
                return
            challenges = refused.headers.getall("WWW-Authenticate", ())
            for scheme, _, parameters in (challenge.partition(" ") for challenge in challenges):
                if scheme.lower() == "bearer":
                    token = await self._fetch_token(dict(_PARAMETER.findall(parameters)))
                    self._authorization = f"Bearer {token}"
                    return
                if scheme.lower() == "basic":
                    self._authorization = self.login.basic

    async def _fetch_token(self, challenge: Mapping[str, str]) -> str:
        realm = URL(challenge.get("realm", ""))
        # The registry chooses the service that gets the password, so that one has to prove its name as well.
        if realm.scheme not in ("https", self._endpoint.scheme) or not realm.host:
            raise AccessDeniedError(
                f"{self.reference}: the registry names no token service over https; ask its operator"
            )
        scope = challenge.get("scope") or f"repository:{self.reference.name}:pull"
        query = {"service": challenge.get("service", ""), "scope": scope}
        if token := self.login.identity_token:
            form = {**query, "grant_type": "refresh_token", "refresh_token": token, "client_id": "appliance"}
            request = self._session.send("POST", realm, data=form)
        else:
            headers = {"Authorization": self.login.basic} if self.login.basic else {}
            request = self._session.send("GET", realm.update_query(query), headers)
        async with await request as response:
            await self._check(response)
            body = await read_body(str(self.reference), response, _MAX_TOKEN_BYTES)
        try:
            found = bounded_json.parse(body)
            token = found.get("token") or found["access_token"]
        except (ValueError, KeyError, AttributeError) as error:
            raise AccessDeniedError(f"{self.reference}: {realm.host} gives no token; {REMEDY}") from error
        # A header must not contain anything else.
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise AccessDeniedError(f"{self.reference}: {realm.host} gives an invalid token; ask its operator")
        return token

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        """Raise the error of a failed response; registries describe it in JSON."""
        if response.status < HTTPStatus.BAD_REQUEST:
            return
        message = response.reason or ""
        with suppress(ValueError, LookupError, TypeError, aiohttp.ClientError, StorageError):
            body = await read_body(str(self.reference), response, _MAX_ERROR_BYTES)
            error = bounded_json.parse(body)["errors"][0]
            message = f"{error['code']}: {error['message']}"
        raise aiohttp.ClientResponseError(
            response.request_info, (), status=response.status, message=message, headers=response.headers
        )


class OciStore(FilesystemStore):
    """One artifact or image of a registry, or of a mirror of it."""

    remedy = REMEDY

    def __init__(self, uri: str, settings: GlobalStorageConfig) -> None:
        super().__init__(uri, settings)
        self._reference = OciReference.parse(uri)
        self._uri = str(self._reference)
        self._block = block_for(settings.credentials.oci, "registry", self._reference.registry)
        self.is_fixed = self._reference.digest is not None
        self.credential = "the login of docker"

    async def _connect(self) -> OciFileSystem:
        address = self._block.endpoint_url if self._block else None
        endpoint = URL(address) if address else None
        registry = endpoint.host_port_subcomponent or "" if endpoint else self._reference.registry
        login = await in_thread(find_login, registry, self._reference.name, self._block)
        self.credential = login.description
        ca_file = self._block.ca_file if self._block else None
        session = await network.session_options(self._settings.transfer, ca_file)
        return OciFileSystem(self._given_uri, login, endpoint, session, skip_instance_cache=True)

    async def _disconnect(self) -> None:
        await self._filesystem.close()

    async def _list(self) -> Listing:
        listing = await super()._list()
        self._reference = self._filesystem.reference
        self._uri = str(self._reference)
        is_file = len(listing.files) == 1 and listing.files[0].unpack is None
        return replace(listing, uri=self._uri, is_file=is_file, revision=self._reference.digest)

    async def _describe(self, _path: str, name: str, info: Info) -> RemoteFile:
        sha256 = info["sha256"]
        return RemoteFile(name, info["size"], sha256, {"sha256": sha256}, unpack=info["unpack"])

    @asynccontextmanager
    async def _open_range(self, path: str, file: RemoteFile, start: int, end: int) -> AsyncIterator[Content]:
        async with self._filesystem.open_range(path, start, end) as response:
            content_range = response.headers.get("Content-Range")
            errors.check_content_range(self._resource(file), content_range, file.size, start, end)
            yield response.content


def _parse_layer(number: int, entry: Mapping[str, Any]) -> Info:  # Any: JSON
    """Return a layer of a manifest as fsspec describes a file; `unpack` is that of `RemoteFile`.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: the entry is not one of a layer.
    """
    digest, size, media = entry["digest"], entry["size"], entry["mediaType"]
    if not _DIGEST.fullmatch(digest) or type(size) is not int or not 0 <= size <= _MAX_LAYER_BYTES:
        raise ValueError("digest or size")
    annotations = entry.get("annotations") or {}
    name = next((annotations[key] for key in _NAMES if annotations.get(key)), None)
    is_image_layer, tar = bool(_IMAGE_LAYER.fullmatch(media)), _TAR.fullmatch(media)
    is_directory = annotations.get(_IS_DIRECTORY) == "true"
    # ORAS gives files the media type of an image's layer as well.
    if name and not is_directory and (is_image_layer or not tar):
        if not isinstance(name, str):
            raise ValueError("title")
        return _layer(name, digest, size, None)
    if not tar and not is_directory:
        raise ValueError("no title")
    suffix = next((f".{kind}" for kind, found in tar.groupdict().items() if found), "") if tar else ".gz"
    unpack = _MODELS if is_image_layer and not name else ""
    return _layer(f"layer-{number:04}-{digest[7:19]}.tar{suffix}", digest, size, unpack)


def _layer(name: str, digest: str, size: int, unpack: str | None) -> Info:
    sha256 = digest.removeprefix("sha256:")
    return {"name": f"/{name}", "size": size, "type": "file", "sha256": sha256, "unpack": unpack}
