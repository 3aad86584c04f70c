"""A proxy over HTTP, with everything that other proxies were seen to break."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI
from server_process import ServerProcess, free_port, wait_until
from upstream_quirks import ERRORS, STREAMS
from upstreams import Answer, Asked, Upstream, sse

pytestmark = pytest.mark.contract

KEY = "sk-never-to-be-seen"
CHAT = "/v1/chat/completions"
BODY = {"model": "alias", "messages": [{"role": "user", "content": "Grüße aus 東京 🙂"}]}

CONFIG = """
models:
- name: ours
  class: proxy
  aliases: [alias]
  upstreams: [{{url: {url}, model: theirs, api_key: "${{file:key}}"}}]
  health: {{interval_seconds: 3600}}
  breaker: {{failures: 1000000}}
  retry: {{attempts: 0}}
- name: kept
  class: proxy
  upstreams: [{{url: {url}}}]
  cache: {{}}
"""


@pytest.fixture(scope="module")
def proxy(_upstreams: tuple[Upstream, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One proxy for the whole file."""
    folder: Path = tmp_path_factory.mktemp("proxy")
    file = folder / "proxy.yaml"
    file.write_text(CONFIG.format(url=_upstreams[0].url))
    (folder / "key").write_text(f"{KEY}\n")
    served = ServerProcess(file, folder / "log", "logging.level=debug").wait_until_ready(30)
    yield served
    assert served.stop() == 0, served.log_tail()


@pytest.fixture
def client(proxy: ServerProcess, upstream: Upstream) -> Iterator[httpx.Client]:
    """A client of the proxy; the upstream has no requests yet."""
    assert upstream.asked == []
    with httpx.Client(base_url=proxy.url, timeout=20) as client:
        yield client


@pytest.mark.parametrize("odd", STREAMS)
def test_unusual_streams_are_relayed(client: httpx.Client, upstream: Upstream, odd: str) -> None:
    """Comments, event names, no [DONE], CRLF, single bytes: unchanged, with the client's name of the model."""
    upstream.on(CHAT, STREAMS[odd])

    asked = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", CHAT, json=asked) as response:
        got = b"".join(response.iter_raw())

    assert response.headers["content-type"].startswith("text/event-stream")
    assert got == _sent(STREAMS[odd](upstream.calls[0])).replace(b'"theirs"', b'"alias"')
    assert got.count(b'"alias"') >= 1


@pytest.mark.parametrize("odd", STREAMS)
def test_usage_is_removed_from_unusual_streams(client: httpx.Client, upstream: Upstream, odd: str) -> None:
    """One event less, and all others unchanged."""
    upstream.on(CHAT, STREAMS[odd])

    with client.stream("POST", CHAT, json={**BODY, "stream": True}) as response:
        got = b"".join(response.iter_raw())

    sent = _sent(STREAMS[odd](upstream.calls[0])).replace(b'"theirs"', b'"alias"')
    assert b'"usage"' in sent or odd == "an error in the middle"
    assert _data(got) == [line for line in _data(sent) if b'"usage"' not in line]


def _data(text: bytes) -> list[bytes]:
    return [line for line in text.splitlines() if line.startswith(b"data:")]


def _sent(answer: Answer) -> bytes:
    assert isinstance(answer.body, tuple | list)
    whole = b"".join(piece for piece in answer.body if isinstance(piece, bytes))
    return gzip.decompress(whole) if answer.headers else whole


def test_the_openai_client_reads_streams(proxy: ServerProcess, upstream: Upstream) -> None:
    """Every chunk, the end, and the usage."""
    openai = OpenAI(base_url=f"{proxy.url}/v1", api_key="theirs", max_retries=0)
    with openai:
        chunks = list(
            openai.chat.completions.create(
                model="ours",
                messages=[{"role": "user", "content": "one two"}],
                stream=True,
                stream_options={"include_usage": True},
            )
        )

    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == "You said: one two"
    assert {chunk.model for chunk in chunks} == {"ours"}
    assert chunks[-1].usage is not None
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("odd", ERRORS)
@pytest.mark.parametrize("is_stream", [False, True])
def test_unusual_errors_are_relayed(client: httpx.Client, upstream: Upstream, odd: str, is_stream: bool) -> None:
    """With status and every byte of the body; none becomes a 502 of ours."""
    upstream.on(CHAT, ERRORS[odd])

    response = client.post(CHAT, json={**BODY, "stream": is_stream})

    assert (response.status_code, response.content) == (ERRORS[odd].status, ERRORS[odd].body)
    assert response.headers["content-type"] == ERRORS[odd].media_type


def test_no_field_is_lost(client: httpx.Client, upstream: Upstream) -> None:
    """Nulls, unknown fields and numbers, in both directions."""
    sent = b'{"model": "ours", "messages": [], "tools": null, "extra_body": {"a": [1.0, null]}, "n": 1e0}'
    answer = b'{"model": "theirs", "choices": [], "service_tier": null, "prompt_logprobs": null, "kv": {"x": 1.50}}'
    upstream.on(CHAT, Answer(body=answer))

    response = client.post(CHAT, content=sent)

    assert upstream.calls[0].body == sent.replace(b"ours", b"theirs")
    assert response.content == answer.replace(b"theirs", b"ours")


def test_all_routes_are_forwarded(client: httpx.Client, upstream: Upstream) -> None:
    """Embeddings and rerank, under both prefixes; the upstream reports what it lacks."""
    body = {"model": "ours", "input": ["a"], "query": "q", "documents": ["d"]}

    for path in ("/v1/embeddings/", "/openai/v1/embeddings", "/v1/rerank", "/v2/rerank", "/openai/rerank"):
        assert client.post(path, json=body).status_code == 200
    missing = client.post("/v1/moderations", json=body)

    asked = ["/v1/embeddings", "/v1/embeddings", "/v1/rerank", "/v2/rerank", "/rerank", "/v1/moderations"]
    assert [call.path for call in upstream.calls] == asked
    assert (missing.status_code, missing.json()["error"]["message"]) == (404, "no route /v1/moderations")


def test_forms_and_speech_are_forwarded(client: httpx.Client, upstream: Upstream) -> None:
    """In a form only the model name is changed."""
    sound = bytes(range(256)) * 400

    heard = client.post("/v1/audio/transcriptions", data={"model": "alias"}, files={"file": ("a.wav", sound)})
    spoken = client.post("/v1/audio/speech", json={"model": "ours", "input": "hi"})

    assert heard.status_code == 200
    assert sound in upstream.calls[0].body
    assert b"\r\n\r\ntheirs\r\n" in upstream.calls[0].body
    assert (spoken.content, spoken.headers["content-type"]) == (b"RIFF\x00\xff\xfe", "audio/wav")


FORM_TYPE = "multipart/form-data; boundary=b"


def _form(*fields: tuple[str, str]) -> bytes:
    parts = (f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields)
    return "".join((*parts, "--b--\r\n")).encode()


def test_the_route_decides_how_a_body_is_read(client: httpx.Client, upstream: Upstream) -> None:
    """Forms where the route has one, JSON everywhere else; anything else is 415 and is not forwarded."""
    json_as_form = client.post(CHAT, json=BODY, headers={"content-type": FORM_TYPE})
    form_for_json = client.post("/v1/messages", files={"model": b"ours"})
    json_for_form = client.post("/v1/audio/transcriptions", json={"model": "ours"})

    assert [each.status_code for each in (json_as_form, form_for_json, json_for_form)] == [415, 415, 415]
    assert "application/json" in json_as_form.json()["error"]["message"]
    assert form_for_json.json()["type"] == "error"
    assert upstream.calls == []


@pytest.mark.parametrize(
    "said", ["text/plain", "application/json; charset=utf-16", "application/x-www-form-urlencoded"]
)
def test_json_is_forwarded_as_json(client: httpx.Client, upstream: Upstream, said: str) -> None:
    """An upstream that obeys the header must not read something else than was checked here."""
    assert client.post(CHAT, json=BODY, headers={"content-type": said}).status_code == 200
    assert upstream.calls[0].header("content-type") == "application/json"


def test_compressed_bodies_are_forwarded_decompressed(client: httpx.Client, upstream: Upstream) -> None:
    """A body may be compressed on any route."""
    packed = gzip.compress(json.dumps(BODY).encode())

    assert client.post(CHAT, content=packed, headers={"content-encoding": "gzip"}).status_code == 200
    assert upstream.calls[0].json()["messages"] == BODY["messages"]
    assert upstream.calls[0].header("content-encoding") is None


def test_a_repeated_form_field_is_rejected(client: httpx.Client, upstream: Upstream) -> None:
    """Parsers return the first or the last one; a list is several fields of its name."""
    route, headers = "/v1/audio/transcriptions", {"content-type": FORM_TYPE}
    twice = client.post(route, content=_form(("model", "ours"), ("model", "else")), headers=headers)
    listed = client.post(route, content=_form(("model", "ours"), ("a[]", "1"), ("a[]", "2")), headers=headers)

    assert (twice.status_code, listed.status_code) == (400, 200)
    assert "'model' twice" in twice.json()["error"]["message"]
    assert len(upstream.calls) == 1


@pytest.mark.parametrize(
    ("route", "headers", "content"),
    [
        ("/v1/audio/transcriptions", {"content-type": FORM_TYPE}, b"--b" * 200_000),
        ("/v1/audio/transcriptions", {"content-type": FORM_TYPE}, b"--b\r\n" * 200_000 + b"\r\n\r\n"),
        ("/v1/audio/transcriptions", {"content-type": FORM_TYPE}, _form(*((f"f{n}", "") for n in range(20_000)))),
        (CHAT, {}, b'{"model":"ours",' + b",".join(b'"%d":0' % n for n in range(1_000_000)) + b"}"),
        (CHAT, {}, b'{"model":"ours","x":[' + b",".join([b"[" * 101 + b"]" * 101] * 50_000) + b"]}"),
    ],
    ids=["bare boundaries", "boundaries on lines", "parts", "members", "nesting"],
)
def test_expensive_bodies_are_rejected_quickly(
    client: httpx.Client, upstream: Upstream, route: str, headers: dict[str, str], content: bytes
) -> None:
    """Megabytes in shapes that once took minutes: 400, and nothing is forwarded."""
    refused = client.post(route, content=content, headers=headers, timeout=60)

    assert refused.status_code == 400
    assert upstream.calls == []


def test_one_request_has_one_id_and_one_trace(client: httpx.Client, upstream: Upstream) -> None:
    """The logs of upstream and proxy can be matched."""
    upstream.on(CHAT, Answer(body=b"{}", headers={"X-Request-Id": "theirs"}))

    response = client.post(CHAT, json=BODY, headers={"traceparent": "00-1-2-01", "x-request-id": "mine"})

    asked = upstream.calls[0]
    assert (asked.header("x-request-id"), asked.header("traceparent")) == ("mine", "00-1-2-01")
    assert response.headers.get_list("x-request-id") == ["mine"]
    assert response.headers["x-upstream-request-id"] == "theirs"


def test_the_key_is_used_and_never_shown(client: httpx.Client, proxy: ServerProcess, upstream: Upstream) -> None:
    """The client's key is not forwarded, and ours is in no error, listing, probe, metric or log."""
    client.post(CHAT, json=BODY, headers={"Authorization": "Bearer sk-of-a-client"})
    shown = [client.get(path).text for path in ("/readyz", "/metrics", "/v1/models", "/")]
    lines = [dict(line) for line in (call.headers for call in upstream.calls)]

    assert lines[0]["authorization"] == f"Bearer {KEY}"
    assert "sk-of-a-client" not in json.dumps(lines)
    assert not [text for text in (*shown, proxy.log.read_text()) if KEY in text or "sk-of-a-client" in text]


def test_a_cached_response_has_a_header(client: httpx.Client, upstream: Upstream) -> None:
    """Metrics count it too, and `no-store` is obeyed."""
    body = {"model": "kept", "input": "once"}

    first, second = (client.post("/v1/embeddings", json=body) for _ in range(2))
    third = client.post("/v1/embeddings", json=body, headers={"Cache-Control": "no-store"})

    assert [each.headers.get("x-cache") for each in (first, second, third)] == ["miss", "hit", None]
    assert first.content == second.content
    assert len(upstream.calls) == 2
    assert 'appliance_cache_requests_total{model="kept",result="hit"} 1.0' in client.get("/metrics").text


def test_metrics_and_probes_list_the_upstreams(client: httpx.Client, upstream: Upstream) -> None:
    """By host and port."""
    client.post(CHAT, json=BODY)
    place = f"127.0.0.1:{upstream.port}"

    (shown, _) = client.get("/readyz").json()["models"]
    text = client.get("/metrics").text

    assert shown["upstreams"] == [
        {
            "name": place,
            "priority": 0,
            "available": True,
            "reason": "the health check succeeded",
            "circuit": "closed",
            "running": 0,
        }
    ]
    assert f'appliance_upstream_healthy{{model="ours",upstream="{place}"}} 1.0' in text
    assert f'appliance_upstream_requests_total{{end="2xx",model="ours",upstream="{place}"}}' in text


def test_neither_torch_nor_vllm_is_loaded(proxy: ServerProcess) -> None:
    """None of their libraries is in the process."""
    maps = Path(f"/proc/{proxy.process.pid}/maps").read_text()

    assert "/aiohttp/" in maps
    assert "torch" not in maps


def test_many_streams_run_concurrently(client: httpx.Client, upstream: Upstream) -> None:
    """Each client gets its own."""
    upstream.on(CHAT, lambda asked: Answer(body=_slowly(asked), media_type="text/event-stream"))
    openers = [client.stream("POST", CHAT, json={**BODY, "user": str(number), "stream": True}) for number in range(20)]
    streams = [opener.__enter__() for opener in openers]

    texts = [stream.read().decode() for stream in streams]
    for opener in openers:
        opener.__exit__(None, None, None)

    assert [f'"user": "{number}"' in text for number, text in enumerate(texts)] == [True] * 20


def _slowly(asked: Asked) -> list[bytes | float]:
    user = asked.json()["user"]
    return [b'data: {"model": "theirs", "user": "%s"}\n\n' % user.encode(), 0.2, *sse(asked)]


def test_a_proxy_starts_without_its_upstreams(tmp_path: Path) -> None:
    """Started before them it waits: live, not ready, and says whom it waits for; they come, it is ready; they go, it is
    not, and is still live.
    """
    port = free_port()
    file = tmp_path / "proxy.yaml"
    file.write_text(
        f"models:\n- name: ours\n  class: proxy\n  upstreams: [{{url: 'http://127.0.0.1:{port}'}}]\n"
        "  health: {interval_seconds: 0.1, failures: 1}\n"
    )
    served = ServerProcess(file, tmp_path / "log")
    try:
        wait_until(lambda: served.state() == "unavailable", 30, served.log_tail)
        status, body = served.get("/readyz")
        refused, error = served.post(CHAT, {"model": "ours"})
        assert (served.get("/livez")[0], status, served.get("/startupz")[0]) == (200, 503, 200)
        assert body["models"][0]["upstreams"][0]["reason"] == f"127.0.0.1:{port} cannot be reached: Connection refused"
        assert (refused, error["error"]["code"]) == (503, "model_not_ready")

        upstream = Upstream()
        upstream.port = port
        with upstream:
            wait_until(lambda: served.get("/readyz")[0] == 200, 30, served.log_tail)
            assert served.post(CHAT, {**BODY, "model": "ours"})[0] == 200
        wait_until(lambda: served.get("/readyz")[0] == 503, 30, served.log_tail)
        assert served.get("/livez")[0] == 200
    finally:
        code = served.stop()

    assert code == 0
