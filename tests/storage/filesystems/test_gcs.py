"""`gs://`: who we are to Google, and what its answers mean."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from storage.filesystems.test_contract import listed, opened
from storage.servers.gcs import BUCKET, GcsServer

from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import AccessDeniedError, ArtifactNotFoundError, StorageError
from appliance.storage.filesystems.gcs import GcsStore

Environment = pytest.MonkeyPatch


@dataclass
class Google:
    """A stand-in for Google's token service and for a bucket that wants its tokens: no emulator knows any rights."""

    url: str = ""
    token_status: int = 200
    tokens: list[str] = field(default_factory=list)
    """The tokens given out; only the last is good."""
    life_seconds: int = 3600
    seen: list[str | None] = field(default_factory=list)
    """The Authorization header of each question about the bucket."""
    queries: list[list[str]] = field(default_factory=list)


@contextmanager
def google() -> Iterator[Google]:
    """The stand-in in a thread."""
    state = Google()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's name
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            state.tokens.append(f"token-{len(state.tokens)}")
            answer = {"access_token": state.tokens[-1], "expires_in": state.life_seconds, "token_type": "Bearer"}
            refusal = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
            self._answer(state.token_status, answer if state.token_status == 200 else refusal)

        def do_GET(self) -> None:
            given = self.headers.get("Authorization")
            state.seen.append(given)
            state.queries.append(self.path.partition("?")[2].split("&"))
            if state.tokens and given == f"Bearer {state.tokens[-1]}":
                self._answer(200, {"items": [{"name": "model/x", "size": "1", "generation": "7"}]})
            else:
                status = 401 if given is None else 403
                self._answer(status, {"error": {"code": status, "message": "no"}})

        def _answer(self, status: int, body: object) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def guarded() -> Iterator[Google]:
    """A bucket behind tokens."""
    with google() as state:
        yield state


@pytest.fixture(scope="module")
def private_key() -> str:
    """The key of a service account."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


@pytest.fixture
def account(guarded: Google, private_key: str) -> str:
    """The JSON of a service account whose tokens the stand-in gives."""
    return json.dumps(
        {
            "type": "service_account",
            "project_id": "test",
            "private_key_id": "1",
            "private_key": private_key,
            "client_email": "reader@test.iam.gserviceaccount.com",
            "token_uri": f"{guarded.url}/token",
        }
    )


def settings(**block: object) -> GlobalStorageConfig:
    """Settings with one block of credentials."""
    return GlobalStorageConfig.model_validate({"credentials": {"gcs": [block]}})


async def test_the_key_in_the_config_is_used(guarded: Google, account: str) -> None:
    """Its token goes with each question."""
    async with opened("gs://bucket/model", settings(key=account, endpoint_url=guarded.url)) as store:
        assert [file.name for file in (await store.list()).files] == ["x"]
        assert store.credential == "key of storage.credentials.gcs"
    assert guarded.seen == ["Bearer token-0"]


async def test_a_key_file_in_the_config_is_used(guarded: Google, account: str, tmp_path: Path) -> None:
    """A path, as secrets are mounted."""
    (tmp_path / "key.json").write_text(account)

    given = settings(key_file=str(tmp_path / "key.json"), endpoint_url=guarded.url)
    assert (await listed("gs://bucket/model", given)).files


async def test_a_token_that_is_about_to_expire_is_renewed(guarded: Google, account: str) -> None:
    """Large models take longer than a token lives."""
    guarded.life_seconds = 1
    async with opened("gs://bucket/model", settings(key=account, endpoint_url=guarded.url)) as store:
        await store.list()
        await store.list()

    assert guarded.seen == ["Bearer token-0", "Bearer token-1"]


async def test_a_key_that_google_does_not_take_is_told(guarded: Google, account: str) -> None:
    """A refusal is final."""
    guarded.token_status = 400

    with pytest.raises(AccessDeniedError, match=r"invalid_grant.*set GOOGLE_APPLICATION_CREDENTIALS") as caught:
        await listed("gs://bucket/model", settings(key=account, endpoint_url=guarded.url))
    assert "PRIVATE KEY" not in str(caught.value)


@pytest.mark.parametrize("text", ["no json", "{}", '{"type": "service_account"}'])
async def test_a_key_that_is_none_is_told(guarded: Google, text: str) -> None:
    """Before anyone is asked."""
    with pytest.raises(AccessDeniedError, match=r"storage\.credentials\.gcs"):
        await listed("gs://bucket/model", settings(key=text, endpoint_url=guarded.url))
    assert guarded.seen == []


async def test_a_broken_variable_is_not_taken_for_none(only_given_credentials: Environment, tmp_path: Path) -> None:
    """Who sets GOOGLE_APPLICATION_CREDENTIALS does not want to be anonymous."""
    only_given_credentials.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nope.json"))

    with pytest.raises(AccessDeniedError, match=r"nope\.json"):
        await listed("gs://bucket/model", settings())


async def test_the_variable_is_used(
    guarded: Google, account: str, only_given_credentials: Environment, tmp_path: Path
) -> None:
    """GOOGLE_APPLICATION_CREDENTIALS, as in every Google library; its token is asked for before Google is."""
    guarded.token_status = 400
    (tmp_path / "key.json").write_text(account)
    only_given_credentials.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))

    async with opened("gs://bucket/model", GlobalStorageConfig()) as store:
        with pytest.raises(AccessDeniedError, match=r"GOOGLE_APPLICATION_CREDENTIALS: .*invalid_grant"):
            await store.list()


async def test_who_is_nobody_is_told_what_to_set(guarded: Google) -> None:
    """Anonymous, in so many words."""
    with pytest.raises(AccessDeniedError, match=r"401 \(no\) to anonymous; set GOOGLE_APPLICATION_CREDENTIALS"):
        await listed("gs://bucket/model", settings(anonymous=True, endpoint_url=guarded.url))


async def test_an_emulator_is_asked_as_nobody(gcs_server: GcsServer, only_given_credentials: Environment) -> None:
    """STORAGE_EMULATOR_HOST, with or without a scheme."""
    gcs_server.put("emulated/x", b"x")
    for host in (gcs_server.url, gcs_server.url.removeprefix("http://")):
        only_given_credentials.setenv("STORAGE_EMULATOR_HOST", host)

        async with opened(f"gs://{BUCKET}/emulated", GlobalStorageConfig()) as store:
            assert [file.name for file in (await store.list()).files] == ["x"]
            assert store.credential == "anonymous"


async def test_an_absent_bucket_is_not_found(gcs_server: GcsServer) -> None:
    """Likewise a prefix in it."""
    with pytest.raises(ArtifactNotFoundError, match="gs://nope-nope/x"):
        await listed("gs://nope-nope/x", settings(anonymous=True, endpoint_url=gcs_server.url))


async def test_every_object_has_its_digests(gcs_server: GcsServer) -> None:
    """MD5 and CRC-32C, in hex."""
    gcs_server.put("digests/x", b"123456789")

    (file,) = (await listed(f"gs://{BUCKET}/digests", settings(anonymous=True, endpoint_url=gcs_server.url))).files
    assert file.digests == {"md5": "25f9e794323b453885f5181f1b624d0b", "crc32c": "e3069283"}


@pytest.mark.parametrize("uri", ["gs://", "gs:///key", "gs://UPPER/x", "gs://me:s3cret@bucket/x"])
def test_a_uri_without_a_bucket_is_refused(uri: str) -> None:
    """And no secret in it is shown."""
    with pytest.raises(StorageError, match="names no bucket") as caught:
        GcsStore(uri, GlobalStorageConfig())
    assert "s3cret" not in str(caught.value)


async def test_options_go_over_the_config(guarded: Google, account: str) -> None:
    """Those of gcsfs, such as who pays; with a token of theirs no other is looked for."""
    given = settings(key="no json", endpoint_url=guarded.url)
    store = GcsStore("gs://bucket/model", given, {"token": json.loads(account), "requester_pays": "project"})
    try:
        assert [file.name for file in (await store.list()).files] == ["x"]
        assert store.credential == "token of storage.options"
    finally:
        await store.close()
    assert {"userProject=project"} == {next(part for part in path if "user" in part) for path in guarded.queries}


async def test_tokens_that_others_can_write_are_not_run(guarded: Google, tmp_path: Path) -> None:
    """gcsfs unpickles them when it is imported."""
    tokens = tmp_path / "home/.gcs_tokens"
    tokens.write_bytes(b"pickle")
    tokens.chmod(0o666)

    with pytest.raises(StorageError, match=r"\.gcs_tokens: other users can write to it"):
        await listed("gs://bucket/model", settings(anonymous=True, endpoint_url=guarded.url))
