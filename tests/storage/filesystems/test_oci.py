"""`oci://`: what artifacts and images hold, who we are to a registry, and registries that lie."""

from __future__ import annotations

import base64
import gzip
import json
import platform
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import fsspec
import pytest
import zstandard
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID
from fsspec.asyn import sync
from storage.servers import registry
from storage.servers.registry import INDEX, LAYER, MANIFEST, Layer, RegistryServer, tar, tar_layer
from yarl import URL

from appliance.config.credentials import OciCredentialsConfig
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import AccessDeniedError, ArtifactCorruptError, ArtifactNotFoundError, StorageError
from appliance.storage import Cache, lockfile, materialize
from appliance.storage.filesystems.oci import OciFileSystem, OciReference, OciStore
from appliance.storage.filesystems.oci_login import OciLogin, find_login
from appliance.storage.lockfile import LockEntry
from appliance.storage.manifest import list_files

Environment = pytest.MonkeyPatch
MODEL = {"config.json": b"{}", "model.safetensors": b"weights" * 1000, "deep/er.txt": b"x"}
DIGEST = "sha256:" + "a" * 64
MODELPACK = "application/vnd.cncf.model"
LOGIN = "me:s3cret"
BCRYPT_OF_LOGIN = "me:$2b$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK"


def settings(cache: Cache, **block: object) -> GlobalStorageConfig:
    """Settings with one block of credentials."""
    given = {"oci": [block]} if block else {}
    return GlobalStorageConfig.model_validate(
        {"cache_dir": cache.root, "credentials": given, "transfer": {"retries": 0, "stall_seconds": 30}}
    )


def fetch(uri: str, given: GlobalStorageConfig, **storage: object) -> dict[str, bytes]:
    """The files that a URI leads to."""
    path = materialize(StorageConfig.model_validate({"uri": uri, **storage}), given, lambda *_: None)
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def name(root: str) -> str:
    """A repository of the test's own."""
    return f"{root}/model"


# What a URI says.


@pytest.mark.parametrize(
    ("uri", "wanted", "endpoint"),
    [
        ("oci://ghcr.io/o/m:1.0", OciReference("ghcr.io", "o/m", "1.0", None), "https://ghcr.io"),
        ("oci://ghcr.io/o/m", OciReference("ghcr.io", "o/m", "latest", None), "https://ghcr.io"),
        ("oci://r.io:5000/m@" + DIGEST, OciReference("r.io:5000", "m", "latest", DIGEST), "https://r.io:5000"),
        ("oci://r.io/m:1@" + DIGEST, OciReference("r.io", "m", "1", DIGEST), "https://r.io"),
        ("oci://localhost:5000/a/b/c:x", OciReference("localhost:5000", "a/b/c", "x", None), "http://localhost:5000"),
        ("oci://127.0.0.1:5000/m", OciReference("127.0.0.1:5000", "m", "latest", None), "http://127.0.0.1:5000"),
        ("oci://[::1]:5000/m", OciReference("[::1]:5000", "m", "latest", None), "http://[::1]:5000"),
        (
            "oci://docker.io/busybox",
            OciReference("docker.io", "library/busybox", "latest", None),
            "https://registry-1.docker.io",
        ),
    ],
)
def test_a_reference_is_read_as_by_docker(uri: str, wanted: OciReference, endpoint: str) -> None:
    """Also where the registry is: only one on the loopback is without TLS."""
    found = OciReference.parse(uri)

    assert found == wanted
    assert found.endpoint == URL(endpoint)


@pytest.mark.parametrize(
    ("uri", "fault"),
    [
        ("oci://", "names no artifact"),
        ("oci://ghcr.io", "names no artifact"),
        ("oci://ghcr.io/Upper/x", "names no artifact"),
        ("oci://ghcr.io/a/../b", "names no artifact"),
        ("oci://ghcr.io/a:b:c", "names no artifact"),
        ("oci://ghcr.io/a@sha256:12", "names no artifact"),
        ("oci://ghcr.io/a?x=1", "names no artifact"),
        ("oci://me:s3cret@ghcr.io/a", "names no artifact"),
        ("oci://owner/model:1", "write oci://docker.io/owner/model"),
    ],
)
def test_a_uri_that_is_no_reference_is_refused(uri: str, fault: str) -> None:
    """And no secret in it is shown."""
    with pytest.raises(StorageError, match=fault) as caught:
        OciStore(uri, GlobalStorageConfig())
    assert "s3cret" not in str(caught.value)


# What an artifact or image holds.


def test_an_image_gives_what_lies_in_its_models(registry_server: RegistryServer, cache: Cache, name: str) -> None:
    """As KServe's modelcars are: above a base with links and devices; later layers change and remove files."""
    link, device = tarfile.TarInfo("bin/sh"), tarfile.TarInfo("dev/null")
    link.type, link.linkname, device.type = tarfile.SYMTYPE, "/bin/busybox", tarfile.CHRTYPE
    directory = tarfile.TarInfo("models")
    directory.type = tarfile.DIRTYPE
    layers = [
        tar_layer({"etc/passwd": b"root", "models-of-others/x": b"x"}, link, device, directory),
        tar_layer({f"models/{file}": data for file, data in MODEL.items()}),
        tar_layer({"models/old.txt": b"old", "models/gone/a": b"a", "models/gone/b": b"b", "models/opaque/a": b"a"}),
        Layer(zstandard.compress(tar({"models/old.txt": b"new", "models/gone/.wh.a": b""})), f"{LAYER}+zstd"),
        Layer(tar({"models/opaque/b": b"b", "models/opaque/.wh..wh..opq": b"", ".wh.etc": b""}), LAYER),
    ]
    registry_server.push(name, layers)

    expected = {**MODEL, "old.txt": b"new", "gone/b": b"b", "opaque/b": b"b"}
    assert fetch(registry_server.uri(name), settings(cache)) == expected


def test_models_that_a_later_layer_replaces_are_gone(registry_server: RegistryServer, cache: Cache, name: str) -> None:
    """All of them, if that removes their directory."""
    layers = [tar_layer({"models/old.txt": b"old"}), tar_layer({".wh.models": b""}), tar_layer({"models/new": b"new"})]
    registry_server.push(name, layers)

    assert fetch(registry_server.uri(name), settings(cache)) == {"new": b"new"}


def test_an_image_without_models_is_told(registry_server: RegistryServer, cache: Cache, name: str) -> None:
    """Any other image, say."""
    registry_server.push(name, [tar_layer({"etc/passwd": b"root"})])

    with pytest.raises(ArtifactNotFoundError, match="no files below /models"):
        fetch(registry_server.uri(name), settings(cache))


def test_a_modelpack_gives_its_files(registry_server: RegistryServer, cache: Cache, name: str) -> None:
    """Raw layers by their paths, and tars unpacked."""
    path = {"org.cncf.model.filepath": "model.safetensors"}
    layers = [
        Layer(MODEL["model.safetensors"], f"{MODELPACK}.weight.v1.raw", annotations=path),
        Layer(tar({"config.json": b"{}"}), f"{MODELPACK}.weight.config.v1.tar"),
        Layer(gzip.compress(tar({"deep/er.txt": b"x"})), f"{MODELPACK}.doc.v1.tar+gzip"),
    ]
    registry_server.push(name, layers)

    assert fetch(registry_server.uri(name), settings(cache)) == MODEL


def test_a_directory_that_oras_packed_is_unpacked(registry_server: RegistryServer, cache: Cache, name: str) -> None:
    """Beside a plain file, which has the media type of a tar all the same."""
    data = gzip.compress(tar({f"{file}": data for file, data in MODEL.items()}))
    layers = [
        Layer(data, f"{LAYER}+gzip", title="model", annotations={"io.deis.oras.content.unpack": "true"}),
        Layer(b"text", title="README.md"),
    ]
    registry_server.push(name, layers)

    assert fetch(registry_server.uri(name), settings(cache)) == {**MODEL, "README.md": b"text"}


def test_the_only_file_of_an_artifact_is_the_model(registry_server: RegistryServer, cache: Cache, name: str) -> None:
    """A GGUF file; an archive is unpacked, as from everywhere else."""
    registry_server.push(name, [Layer(b"GGUF", title="model.gguf")], "gguf")
    registry_server.push(name, [Layer(gzip.compress(tar(MODEL)), title="model.tar.gz")], "packed")

    storage = StorageConfig(uri=registry_server.uri(name, ":gguf"))
    assert materialize(storage, settings(cache), lambda *_: None).read_bytes() == b"GGUF"
    assert fetch(registry_server.uri(name, ":packed"), settings(cache)) == MODEL


def test_what_is_left_out_of_a_packed_image_is_not_kept(
    registry_server: RegistryServer, cache: Cache, name: str
) -> None:
    """`include` and `exclude` are about files, and not about layers; pickles are refused."""
    registry_server.push(name, [tar_layer({f"models/{file}": data for file, data in MODEL.items()})])
    assert fetch(registry_server.uri(name), settings(cache), exclude=["deep/"]).keys() == MODEL.keys() - {"deep/er.txt"}

    registry_server.push(name, [tar_layer({"models/pytorch_model.bin": b"pickle"})], "pickled")
    with pytest.raises(StorageError, match=r"pytorch_model\.bin: pickled"):
        fetch(registry_server.uri(name, ":pickled"), settings(cache))


def test_an_index_leads_to_the_image_of_this_machine(registry_server: RegistryServer, cache: Cache, name: str) -> None:
    """And not to another's, nor to an attestation."""
    mine = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    entries = []
    for architecture in ("s390x", "riscv64", mine, "unknown"):
        data = architecture.encode()
        digest = registry_server.push(name, registry.files_as_layers({"x": data, "y": b""}), architecture)
        entry = {"mediaType": MANIFEST, "digest": digest, "size": 1, "platform": {"architecture": architecture}}
        marks = {"vnd.docker.reference.type": "attestation-manifest"} if architecture == "unknown" else {}
        entries.append({**entry, "annotations": marks})
    index = {"schemaVersion": 2, "mediaType": INDEX}
    registry_server.push_manifest(name, {**index, "manifests": entries}, "all")
    registry_server.push_manifest(name, {**index, "manifests": entries[:2]}, "others")
    all_of_them = registry_server.push_manifest(name, {**index, "manifests": entries}, "again")
    nested = [{"mediaType": INDEX, "digest": all_of_them, "size": 1}]
    registry_server.push_manifest(name, {**index, "manifests": nested}, "nested")

    assert fetch(registry_server.uri(name, ":all"), settings(cache))["x"] == mine.encode()
    with pytest.raises(ArtifactNotFoundError, match=f"has no image for {mine}, only for riscv64, s390x"):
        fetch(registry_server.uri(name, ":others"), settings(cache))
    with pytest.raises(ArtifactCorruptError, match="leads to another index"):
        fetch(registry_server.uri(name, ":nested"), settings(cache))


def test_a_tag_is_pinned_by_its_digest(
    registry_server: RegistryServer, cache: Cache, name: str, tmp_path: Path
) -> None:
    """The lock file has it, and leads to it when the tag has moved; what is pinned is not asked for again."""
    digest = registry_server.push(name, registry.files_as_layers(MODEL))
    uri, given = registry_server.uri(name), settings(cache)
    storage = StorageConfig(uri=uri)
    found = list_files(materialize(storage, given, lambda *_: None), read_all=True)
    lockfile.write(tmp_path / "appliance.lock", [LockEntry.of(storage, found)])
    registry_server.push(name, registry.files_as_layers({"other": b"other", "y": b""}))

    assert found.source == f"{uri.removesuffix(':latest')}@{digest}"
    assert json.loads((tmp_path / "appliance.lock").read_text())["storages"][0]["revision"] == digest
    elsewhere = settings(Cache.at(tmp_path / "elsewhere")).model_copy(update={"lock_file": tmp_path / "appliance.lock"})
    assert fetch(uri, elsewhere) == MODEL
    assert OciStore(f"{uri}@{digest}", given).is_fixed
    assert fetch(f"{uri}@{digest}", given) == MODEL


async def test_it_is_a_filesystem_of_fsspec(registry_server: RegistryServer, name: str) -> None:
    """With paths below the artifact."""
    registry_server.push(name, registry.files_as_layers(MODEL))
    fsspec.register_implementation("oci", OciFileSystem, clobber=True)

    files, root = fsspec.url_to_fs(registry_server.uri(name), skip_instance_cache=True)
    assert root == "/"
    assert files.ls("/", detail=False) == ["/config.json", "/deep", "/model.safetensors"]
    assert files.find("/deep") == ["/deep/er.txt"]
    assert files.isdir("/deep")
    assert files.info("/config.json")["size"] == 2
    assert files.cat_file("/model.safetensors", 1, 4) == b"eig"
    assert not files.exists("/nope")


# Who we are to it.


def docker_config(tmp_path: Path, monkeypatch: Environment, config: Mapping[str, Any]) -> None:
    """Write the config of docker."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))


def encoded(login: str) -> str:
    """A login as docker keeps it."""
    return base64.b64encode(login.encode()).decode()


@pytest.mark.parametrize(
    ("config", "registry_name", "user"),
    [
        ({"auths": {"ghcr.io": {"auth": encoded("me:s3cret")}}}, "ghcr.io", "me"),
        ({"auths": {"https://ghcr.io/v1/": {"username": "me", "password": "s3cret"}}}, "ghcr.io", "me"),
        ({"auths": {"https://index.docker.io/v1/": {"auth": encoded("me:s3cret")}}}, "docker.io", "me"),
        ({"auths": {"r.io": {"auth": encoded("a:b")}, "r.io/o/m": {"auth": encoded("me:s3cret")}}}, "r.io", "me"),
        ({"auths": {"r.io/o/m2": {"auth": encoded("a:b")}, "other.io": {"auth": encoded("a:b")}}}, "r.io", ""),
        ({"auths": {"r.io:5000": {"auth": encoded("a:b")}}}, "r.io", ""),
        ({"auths": {"r.io": {}}}, "r.io", ""),
        ({}, "r.io", ""),
    ],
)
def test_logins_are_those_of_docker(
    tmp_path: Path, only_given_credentials: Environment, config: Mapping[str, Any], registry_name: str, user: str
) -> None:
    """Each for its registry, or for a part of it; none for another."""
    docker_config(tmp_path, only_given_credentials, config)

    found = find_login(registry_name, "o/m", None)
    assert (found.user, found.password) == (user, "s3cret" if user else "")
    assert "s3cret" not in repr(found)


def test_a_helper_of_docker_is_asked(tmp_path: Path, only_given_credentials: Environment) -> None:
    """As for Amazon's registry, whose passwords last for hours; one that is not there is told."""
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        '#!/bin/sh\nread server; echo "{\\"Username\\": \\"<token>\\", \\"Secret\\": \\"for-$server\\"}"\n'
    )
    helper.chmod(0o755)
    only_given_credentials.setenv("PATH", str(tmp_path), prepend=":")
    docker_config(tmp_path, only_given_credentials, {"credHelpers": {"r.io": "test"}, "credsStore": "nope"})

    assert find_login("r.io", "m", None) == OciLogin("docker-credential-test", identity_token="for-r.io")
    assert find_login("x.io", "m", None).description == "anonymous, as docker-credential-nope is not installed"


def test_the_config_goes_before_docker(tmp_path: Path, only_given_credentials: Environment) -> None:
    """Also where it wants no login."""
    docker_config(tmp_path, only_given_credentials, {"auths": {"r.io": {"auth": encoded("me:s3cret")}}})

    block = OciCredentialsConfig.model_validate({"registry": "r.io", "username": "ci", "password": "x"})
    assert find_login("r.io", "m", block).user == "ci"
    anonymous = OciCredentialsConfig(registry="r.io", anonymous=True)
    assert find_login("r.io", "m", anonymous) == OciLogin()


@pytest.mark.parametrize("text", ["no json", "[]", '{"auths": {"r.io": {"auth": "?"}}}', '{"auths": []}'])
def test_a_config_of_docker_that_is_none_is_told(
    tmp_path: Path, only_given_credentials: Environment, text: str
) -> None:
    """By its path."""
    (tmp_path / "config.json").write_text(text)
    only_given_credentials.setenv("DOCKER_CONFIG", str(tmp_path))

    with pytest.raises(StorageError, match=r"config\.json: not a config of docker"):
        find_login("r.io", "m", None)


@dataclass
class TokenService:
    """A stand-in for a registry's token service: it signs tokens that the real registry checks."""

    url: str
    certificate: str
    seen: list[str] = field(default_factory=list)
    """The query of each request, and the form of those that sent one."""


@contextmanager
def token_service(directory: Path) -> Iterator[TokenService]:
    """The service in a thread; its certificate is in `directory`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")]), datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = (
        builder.serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    )
    certificate = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), True).sign(key, SHA256())
    (directory / "tokens.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    chain = [base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()]

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    def token(scope: str) -> str:
        kind, repository, actions = scope.split(":")
        access = [{"type": kind, "name": repository, "actions": actions.split(",")}]
        times = {"nbf": int(time.time()) - 60, "iat": int(time.time()), "exp": int(time.time()) + 60}
        claims = {"iss": "tests", "sub": "me", "aud": "registry", "jti": "1", "access": access, **times}
        signed = f"{part({'typ': 'JWT', 'alg': 'ES256', 'x5c': chain})}.{part(claims)}"
        r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(SHA256())))
        raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        return f"{signed}.{base64.urlsafe_b64encode(raw).rstrip(b'=').decode()}"

    class Handler(Quiet):
        def do_GET(self) -> None:
            query = urlsplit(self.path).query
            service.seen.append(query)
            if self.headers.get("Authorization") != f"Basic {encoded(LOGIN)}":
                self.answer(401, b'{"errors": [{"code": "UNAUTHORIZED", "message": "wrong password"}]}')
            else:
                self.answer(200, json.dumps({"token": token(parse_qs(query)["scope"][0])}).encode())

        def do_POST(self) -> None:
            form = self.rfile.read(int(self.headers["Content-Length"])).decode()
            service.seen.append(form)
            is_known = parse_qs(form)["refresh_token"] == ["identity"]
            self.answer(
                200 if is_known else 401, json.dumps({"access_token": token(parse_qs(form)["scope"][0])}).encode()
            )

    with answering(Handler) as url:
        service = TokenService(url, str(directory / "tokens.crt"))
        yield service


class Quiet(BaseHTTPRequestHandler):
    """A handler that logs nothing."""

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's name
        pass

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        """Send a whole answer."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A web server in a thread, and its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(params=["basic", "token"])
def guarded(
    request: pytest.FixtureRequest, registry_server: RegistryServer, tmp_path: Path
) -> Iterator[RegistryServer]:
    """The registry behind a login, of each of the two kinds."""
    (tmp_path / "htpasswd").write_text(BCRYPT_OF_LOGIN)
    if request.param == "basic":
        auth = {"htpasswd": {"realm": "tests", "path": str(tmp_path / "htpasswd")}}
        with registry.docker_registry(tmp_path, registry_server.data, auth) as server:
            yield server
        return
    with token_service(tmp_path) as service:
        facts = {"realm": f"{service.url}/token", "service": "registry", "issuer": "tests"}
        auth = {"token": {**facts, "rootcertbundle": service.certificate}}
        with registry.docker_registry(tmp_path, registry_server.data, auth) as server:
            yield server


def test_a_login_lets_in(
    registry_server: RegistryServer,
    guarded: RegistryServer,
    cache: Cache,
    name: str,
    tmp_path: Path,
    only_given_credentials: Environment,
) -> None:
    """Docker's, or that of the config; a wrong one and none are told, without the password."""
    registry_server.push(name, registry.files_as_layers(MODEL))
    uri = guarded.uri(name)
    with pytest.raises(AccessDeniedError, match=r"401.*to anonymous; log in with docker login"):
        fetch(uri, settings(cache))
    wrong = settings(cache, registry=guarded.host, username="me", password="wr0ng")
    with pytest.raises(AccessDeniedError, match=r"401.*to username of storage\.credentials\.oci") as caught:
        fetch(uri, wrong)
    assert "wr0ng" not in str(caught.value)

    assert fetch(uri, settings(cache, registry=guarded.host, username="me", password="s3cret")) == MODEL
    docker_config(tmp_path, only_given_credentials, {"auths": {guarded.host: {"auth": encoded(LOGIN)}}})
    assert fetch(uri, settings(Cache.at(tmp_path / "other"))) == MODEL


def test_a_mirror_is_asked_in_place_of_the_registry(registry_server: RegistryServer, cache: Cache, root: str) -> None:
    """Its path precedes the name; the artifact keeps its own."""
    digest = registry_server.push(f"{root}/proxied/o/m", registry.files_as_layers(MODEL))
    given = settings(cache, registry="registry.test", endpoint_url=f"http://{registry_server.host}/{root}/proxied")

    storage = StorageConfig(uri="oci://registry.test/o/m")
    found = list_files(materialize(storage, given, lambda *_: None), read_all=True)
    assert found.source == f"oci://registry.test/o/m@{digest}"
    assert found.files.keys() == MODEL.keys()


# Registries that lie.


def manifest_of(*contents: Layer, **more: object) -> bytes:
    """A manifest of these layers."""
    entries = [layer.descriptor() for layer in contents]
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "layers": entries, **more}).encode()


def altered(**more: object) -> bytes:
    """A manifest whose only layer says something else."""
    return manifest_of(layers=[{**Layer(b"x", title="x").descriptor(), **more}])


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"<html>", "of no known kind"),
        (b"[" * 100_000, "of no known kind"),
        (b"[]", "of no known kind"),
        (manifest_of(mediaType="application/vnd.docker.distribution.manifest.v1+prettyjws"), "of no known kind"),
        (manifest_of(manifests=[]), "of no known kind"),
        (manifest_of(layers={}), "of no known kind"),
        (b" " * (5 << 20), "more than 4,194,304 bytes"),
        (altered(size=-1), "layer 0 .* is broken"),
        (altered(size="1"), "layer 0 .* is broken"),
        (altered(size=True), "layer 0 .* is broken"),
        (altered(size=1 << 80), "layer 0 .* is broken"),
        (altered(digest="sha256:../../etc/passwd"), "layer 0 .* is broken"),
        (altered(digest=None), "layer 0 .* is broken"),
        (altered(mediaType="application/x", annotations={}), "layer 0 .* is broken .no title"),
        (altered(annotations="x"), "layer 0 .* is broken"),
        (manifest_of(layers=[7]), "layer 0 .* is broken"),
        (manifest_of(Layer(b"a", title="x"), Layer(b"b", title="x")), "two of its layers are named 'x'"),
        (manifest_of(Layer(b"a", title="../x"), Layer(b"b", title="y")), "leads out of its directory"),
        (manifest_of(Layer(b"a", title="/etc/x"), Layer(b"b", title="y")), "absolute name"),
        (json.dumps({"mediaType": INDEX, "manifests": [7]}).encode(), "its index is broken"),
        (json.dumps({"mediaType": INDEX, "manifests": [{"digest": "../x"}]}).encode(), "its index is broken"),
        (json.dumps({"mediaType": INDEX, "manifests": []}).encode(), "only for nothing"),
    ],
)
def test_a_manifest_that_is_none_is_refused(cache: Cache, body: bytes, fault: str) -> None:
    """Whatever a registry sends."""

    class Handler(Quiet):
        def do_GET(self) -> None:
            self.answer(200, body)

    with answering(Handler) as url, pytest.raises(StorageError, match=fault):
        fetch(f"oci://{URL(url).authority}/m", settings(cache))


def test_a_manifest_with_another_digest_is_refused(cache: Cache) -> None:
    """What is pinned is what is used."""

    class Handler(Quiet):
        def do_GET(self) -> None:
            self.answer(200, manifest_of(Layer(b"x", title="x")))

    with answering(Handler) as url, pytest.raises(ArtifactCorruptError, match="has the digest sha256:"):
        fetch(f"oci://{URL(url).authority}/m@{DIGEST}", settings(cache))


def test_a_login_is_for_the_registry_alone(cache: Cache) -> None:
    """The object store behind it sees none of it, and cannot ask for one."""
    seen: dict[str, list[str | None]] = {"registry": [], "store": []}
    layers = [Layer(b"x" * 100, title="x"), Layer(b"y" * 100, title="y")]

    class Store(Quiet):
        def do_GET(self) -> None:
            seen["store"].append(self.headers.get("Authorization"))
            if self.path.endswith("y"):
                self.answer(401, b"", WWW_Authenticate=f'Basic realm="{self.path}"')
            else:
                self.answer(206, b"x" * 100, Content_Range="bytes 0-99/100")

    class Registry(Quiet):
        def do_GET(self) -> None:
            seen["registry"].append(self.headers.get("Authorization"))
            if not self.headers.get("Authorization"):
                self.answer(401, b"", WWW_Authenticate='Basic realm="tests"')
            elif "/manifests/" in self.path:
                self.answer(200, manifest_of(*layers))
            else:
                name = "x" if self.path.endswith(layers[0].descriptor()["digest"]) else "y"
                self.answer(307, b"", Location=f"{store}/{name}")

    with answering(Store) as store, answering(Registry) as url:
        host = URL(url).authority
        with pytest.raises(AccessDeniedError, match="401"):
            fetch(f"oci://{host}/m", settings(cache, registry=host, username="me", password="s3cret"))
    assert set(seen["store"]) == {None}
    assert set(seen["registry"]) == {None, f"Basic {encoded(LOGIN)}"}


def test_a_password_is_sent_over_tls_only() -> None:
    """A registry with TLS that names a token service without is not trusted."""
    files = OciFileSystem("oci://ghcr.io/m", OciLogin("test", "me", "s3cret"), skip_instance_cache=True)

    with pytest.raises(AccessDeniedError, match="no token service over https"):
        sync(files.loop, files._fetch_token, {"realm": "http://ghcr.io/token"})


def test_a_token_that_is_no_header_is_refused(cache: Cache) -> None:
    """With a line break in it, say."""

    class Handler(Quiet):
        def do_GET(self) -> None:
            if self.path.startswith("/token"):
                self.answer(200, b'{"token": "a\\r\\nb"}')
            else:
                self.answer(401, b"", WWW_Authenticate=f'Bearer realm="http://{self.headers["Host"]}/token"')

    with answering(Handler) as url, pytest.raises(AccessDeniedError, match="gives an invalid token"):
        fetch(f"oci://{URL(url).authority}/m", settings(cache))
