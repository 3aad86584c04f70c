"""Clients that people have, over TLS and with keys, through a process as people run it to a scripted upstream."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import grpc
import httpx2
import openai
import pytest
import trustme
from server_process import ServerProcess, free_port, wait_until
from upstreams import Upstream

from appliance.tensors.grpc import inference_pb2 as pb
from appliance.tensors.grpc.inference_pb2_grpc import GRPCInferenceServiceStub

KEY = "sk-of-this-test-and-no-other"
AUTHORITY = trustme.CA()


@dataclass(slots=True)
class SecureServer:
    """The process, what is behind it, and how to trust it."""

    served: ServerProcess
    upstream: Upstream
    grpc_port: int
    probe_port: int
    folder: Path

    @property
    def url(self) -> str:
        """Where it is."""
        return f"https://localhost:{self.served.port}"

    def http(self) -> httpx2.Client:
        """A client that trusts its certificate."""
        return httpx2.Client(verify=_trusting(), timeout=60)


def _trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


def _issue(folder: Path) -> None:
    leaf = AUTHORITY.issue_cert("localhost")
    (folder / "tls.crt").write_bytes(b"".join(each.bytes() for each in leaf.cert_chain_pems))
    (folder / "tls.key").write_bytes(leaf.private_key_pem.bytes())


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureServer]:
    """A proxy that passes on what clients send for its upstream, as far as it is not ours."""
    folder = tmp_path_factory.mktemp("secured")
    _issue(folder)
    grpc_port, probe_port = free_port(), free_port()
    with Upstream() as upstream:
        file = folder / "config.yaml"
        file.write_text(f"""\
models:
  - name: ours
    class: proxy
    upstreams: [{{url: '{upstream.url}', model: theirs, api_key: sk-up}}]
    headers: {{forward: [x-api-key, api-key, x-other]}}
server:
  grpc_port: {grpc_port}
  probe_port: {probe_port}
  api_keys: [{{name: team, value: {KEY}}}]
  tls: {{certificate: {folder}/tls.crt, key: {folder}/tls.key}}
""")
        served = ServerProcess(file, folder / "log")
        wait_until(lambda: served.get("/readyz", probe_port)[0] == 200, 60, served.log_tail)
        yield SecureServer(served, upstream, grpc_port, probe_port, folder)
        assert served.stop() == 0, served.log_tail()


def test_openais_client_comes_with_its_key(secured: SecureServer) -> None:
    """With it an answer and a stream, without it its own error for that."""
    with secured.http() as http:
        good = openai.OpenAI(base_url=f"{secured.url}/v1", api_key=KEY, http_client=http)
        bad = openai.OpenAI(base_url=f"{secured.url}/v1", api_key="sk-wrong-wrong-wrong", http_client=http)
        messages: Any = [{"role": "user", "content": "hello"}]
        whole = good.chat.completions.create(model="ours", messages=messages)
        streamed = [*good.chat.completions.create(model="ours", messages=messages, stream=True)]
        with pytest.raises(openai.AuthenticationError) as caught:
            bad.chat.completions.create(model="ours", messages=messages)

    assert whole.choices[0].message.content == "You said: hello"
    assert streamed
    assert caught.value.code == "invalid_api_key"


def test_anthropics_client_comes_with_its_key(secured: SecureServer) -> None:
    """Its header is `x-api-key`, and its error has a shape of its own."""
    with secured.http() as http:
        good = anthropic.Anthropic(base_url=secured.url, api_key=KEY, http_client=http)
        bad = anthropic.Anthropic(base_url=secured.url, api_key="sk-wrong-wrong-wrong", http_client=http)
        messages: Any = [{"role": "user", "content": "hello"}]
        whole = good.messages.create(model="ours", max_tokens=9, messages=messages)
        with pytest.raises(anthropic.AuthenticationError):
            bad.messages.create(model="ours", max_tokens=9, messages=messages)

    assert whole.content


def test_azures_header_opens_too(secured: SecureServer) -> None:
    """And every answer over TLS tells browsers to come back over TLS."""
    with secured.http() as http:
        answer = http.get(f"{secured.url}/v1/models", headers={"api-key": KEY})

    assert answer.status_code == 200
    assert answer.headers["strict-transport-security"].startswith("max-age=")


def test_our_key_never_gets_to_an_upstream(secured: SecureServer) -> None:
    """Not even in a header that the config passes on; what is not ours travels."""
    with secured.http() as http:
        body = {"model": "ours", "messages": [{"role": "user", "content": "hello"}]}
        headers = {"x-api-key": KEY, "api-key": "for-the-upstream", "x-other": "1"}
        http.post(f"{secured.url}/v1/chat/completions", json=body, headers=headers).raise_for_status()

    last = secured.upstream.asked[-1]
    assert last.header("api-key") == "for-the-upstream"
    assert last.header("x-other") == "1"
    assert KEY not in json.dumps(last.headers)


def test_probes_of_the_platform_need_neither_key_nor_certificate(secured: SecureServer) -> None:
    """Their own listener has no TLS, and names every model."""
    status, body = secured.served.get("/readyz", secured.probe_port)

    assert (status, [model["name"] for model in body["models"]]) == (200, ["ours"])


def test_grpc_has_the_same_certificate_and_keys_and_follows_it(secured: SecureServer) -> None:
    """A new certificate is shown to the next connection; the one of before goes on."""
    secrets = grpc.ssl_channel_credentials(AUTHORITY.cert_pem.bytes())
    metadata = (("authorization", f"Bearer {KEY}"),)

    def names(channel: grpc.Channel) -> list[str]:
        stub: Any = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        answer = stub.RepositoryIndex(pb.RepositoryIndexRequest(), metadata=metadata, timeout=30)
        return [model.name for model in answer.models]

    def shown() -> str:
        return ssl.get_server_certificate(("127.0.0.1", secured.grpc_port))

    before = shown()
    with grpc.secure_channel(f"localhost:{secured.grpc_port}", secrets) as old:
        assert names(old) == ["ours"]
        _issue(secured.folder)
        wait_until(lambda: shown() != before, 60, secured.served.log_tail)
        with grpc.secure_channel(f"localhost:{secured.grpc_port}", secrets) as new:
            assert names(new) == names(old) == ["ours"]


def test_no_key_is_ever_in_the_log(secured: SecureServer) -> None:
    """Nor is one that was refused."""
    log = secured.served.log.read_text()

    assert '"status": 401' in log
    assert KEY not in log
    assert "sk-wrong" not in log
