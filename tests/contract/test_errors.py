"""Error bodies of every protocol over HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from contract.golden import Golden
from contract.server import COMMON_HEADERS, Server, streamed_chat
from upstreams import Answer, Upstream

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


@dataclass(frozen=True)
class Protocol:
    """A path of a protocol, where ``{model}`` is the model unless the body names it, and a body that is right."""

    path: str
    body: Mapping[str, Any]
    model: str
    """A model that answers it."""

    wrong: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Fields over those of the body that make it wrong; None takes a field away."""

    is_named: bool = True
    """The body names the model."""

    def request(self, model: str, changes: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Path and body."""
        body = {**({"model": model} if self.is_named else {}), **self.body, **(changes or {})}
        return self.path.format(model=model), {name: value for name, value in body.items() if value is not None}


TENSOR = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}

PROTOCOLS = {
    "openai_chat": Protocol(
        CHAT,
        {"messages": MESSAGES},
        "echo",
        {
            "no messages": {"messages": None},
            "messages of a wrong type": {"messages": "hi"},
            "a message of a wrong type": {"messages": [3]},
            "temperature of a wrong type": {"temperature": "hot"},
            "stream of a wrong type": {"stream": "yes"},
            "model of a wrong type": {"model": 3},
            "the model's code raises": {"messages": [{"role": "user", "content": "fail"}]},
            "the model's code raises in a stream": {"messages": [{"role": "user", "content": "fail"}], "stream": True},
            "the model's code raises late": {"messages": [{"role": "user", "content": "fail late"}], "stream": True},
        },
    ),
    "openai_completions": Protocol(
        "/v1/completions",
        {"prompt": "hi"},
        "echo",
        {"no prompt": {"prompt": None}, "prompt of a wrong type": {"prompt": {"a": 1}}, "no model": {"model": None}},
    ),
    "openai_embeddings": Protocol(
        "/v1/embeddings",
        {"input": "hi"},
        "lengths",
        {
            "no input": {"input": None},
            "input of a wrong type": {"input": 3.5},
            "encoding_format of a wrong type": {"encoding_format": "roman"},
        },
    ),
    "openai_responses": Protocol("/v1/responses", {"input": "hi"}, "forwarded", {"no model": {"model": None}}),
    "anthropic_messages": Protocol(
        "/v1/messages", {"max_tokens": 5, "messages": MESSAGES}, "forwarded", {"no model": {"model": None}}
    ),
    "adapter_chat": Protocol(
        CHAT,
        {"messages": MESSAGES},
        "chatting",
        {
            "no messages": {"messages": None},
            "messages of a wrong type": {"messages": "hi"},
            "tools that it cannot have": {"tools": [{"type": "function", "function": {"name": "f"}}]},
            "n of a wrong type": {"n": "two"},
            "too many choices": {"n": 1000},
        },
    ),
    "oip_v1": Protocol(
        "/v1/models/{model}:predict",
        {"instances": ["hi"]},
        "lengths",
        {"no instances": {"instances": None}, "instances of a wrong type": {"instances": [[3]]}},
        is_named=False,
    ),
    "oip_v2": Protocol(
        "/v2/models/{model}/infer",
        {"inputs": [TENSOR]},
        "sums",
        {
            "no inputs": {"inputs": None},
            "inputs of a wrong type": {"inputs": "x"},
            "no datatype": {"inputs": [{**TENSOR, "datatype": None}]},
            "an unknown datatype": {"inputs": [{**TENSOR, "datatype": "FP31"}]},
            "elements of a wrong type": {"inputs": [{**TENSOR, "data": ["a", "b"]}]},
            "too few elements": {"inputs": [{**TENSOR, "data": [1]}]},
            "a negative shape": {"inputs": [{**TENSOR, "shape": [-2]}]},
        },
        is_named=False,
    ),
    "oip_v2_generate": Protocol(
        "/v2/models/{model}/generate",
        {"text_input": "hi"},
        "echo",
        {"no text": {"text_input": None}, "text of a wrong type": {"text_input": 3}},
        is_named=False,
    ),
}

EACH = pytest.mark.parametrize("name", PROTOCOLS)


@EACH
def test_what_a_client_does_wrong_is_described(
    open_server: Server, session_upstream: Upstream, golden: Golden, name: str
) -> None:
    """Unknown and unsuited models, bodies that are none, wrong fields, content types, sizes, paths and methods."""
    protocol = PROTOCOLS[name]
    path, body = protocol.request(protocol.model)
    text = json.dumps(body).encode()
    absent = protocol.request("absent")
    unsuited = protocol.request("lengths" if protocol.model != "lengths" else "echo")
    loading = protocol.request("late")
    gone = protocol.request("gone")
    nested = b'{"a":' * 30 + b"1" + b"}" * 30

    def post(content: bytes, content_type: str = "application/json", **headers: str) -> dict[str, Any]:
        return open_server.answer("POST", path, content=content, headers={"Content-Type": content_type, **headers})

    seen = {
        "what is right": open_server.answer("POST", path, body=body)["status"],
        "an unknown model": open_server.answer("POST", absent[0], body=absent[1]),
        "a model for something else": open_server.answer("POST", unsuited[0], body=unsuited[1]),
        "a model that loads": open_server.answer("POST", loading[0], body=loading[1]),
        "a model without its upstream": open_server.answer("POST", gone[0], body=gone[1]),
        "no body": post(b""),
        "no JSON": post(b"{"),
        "no object": post(b"[]"),
        "no UTF-8": post(text[:-1] + b',"a":"\xff"}'),
        "a key twice": post(text[:-1] + b"," + text[1:]),
        "too deep": post(text[:-1] + b',"a":' + nested + b"}"),
        "too large": post(b" " * 20_001),
        "a form": post(text, "multipart/form-data; boundary=x"),
        "text": post(text, "text/plain")["status"],
        "an unknown encoding": post(text, **{"Content-Encoding": "br"}),
        "no gzip": post(text, **{"Content-Encoding": "gzip"}),
        "DELETE": open_server.answer("DELETE", path),
    }
    for fault, changes in protocol.wrong.items():
        seen[fault] = open_server.answer("POST", path, body=protocol.request(protocol.model, changes)[1])

    golden.check(f"errors_{name}.json", seen)


def test_paths_that_nobody_has_are_refused_in_the_form_of_their_protocol(open_server: Server, golden: Golden) -> None:
    """Unknown paths, methods that a path does not take, and what of a path is unknown."""
    asked = [
        *(
            ("GET", path)
            for path in ("/absent", "/v1/absent", "/openai/v1/absent", "/v2/absent", "/v1/messages/absent")
        ),
        *(("GET", path) for path in ("/v1/models/absent", "/v2/models/absent", "/v2/models/absent/ready")),
        ("GET", "/v1/models/echo:absent"),
        ("POST", "/v1/models/echo:absent"),
        ("POST", "/v2/models/echo/absent"),
        ("POST", "/v2/models/echo/versions/7/infer"),
        *(("GET", path) for path in (CHAT, "/v1/embeddings", "/v2/models/sums/infer", "/v1/messages")),
        *(("POST", path) for path in ("/v1/models", "/readyz", "/metrics", "/v2", "/v2/models")),
        ("PUT", CHAT),
        ("POST", "/v2/repository/models/absent/load"),
        ("POST", "/v2/repository/models/absent/unload"),
        ("POST", "/v2/repository/models/late/load"),
    ]

    golden.check("errors_paths.json", {f"{method} {path}": open_server.answer(method, path) for method, path in asked})


def test_overload_is_refused_in_the_form_of_the_protocol(open_server: Server, golden: Golden) -> None:
    """429 where as many as may be are computed and wait."""
    open_server.close_gate("answer")
    seen = {}
    with ExitStack() as stack:
        # The second one waits; both have an answer only once the gate is open.
        stack.enter_context(streamed_chat(open_server, "narrow"))
        stack.enter_context(streamed_chat(open_server, "narrow", "queued"))
        for name in ("openai_chat", "openai_completions", "oip_v2_generate"):
            path, body = PROTOCOLS[name].request("narrow")
            seen[name] = open_server.answer("POST", path, body=body)
        open_server.open_gate("answer")

    golden.check("errors_overload.json", seen)


def test_faults_of_an_upstream_are_told_from_those_of_the_client(
    open_server: Server, session_upstream: Upstream, golden: Golden
) -> None:
    """Errors of the upstream, one that is late, one that breaks off, for a proxy and for an adapter over it."""
    faults = {
        "400": Answer(400, b'{"error": {"message": "no", "type": "invalid_request_error", "param": null, "code": 7}}'),
        "401": Answer(401, b'{"error": "no"}'),
        "404": Answer(404, b"not here", "text/plain"),
        "429": Answer(429, b'{"error": {"message": "later"}}', headers={"Retry-After": "7"}),
        "500": Answer(500, b"<html>", "text/html"),
        "503": Answer(503, b"{}"),
        "no JSON": Answer(200, b"{"),
        "a redirect": Answer(302, b"", headers={"Location": "https://elsewhere.example"}),
        "too late": Answer(200, b"{}", wait=1.0),
        "an unknown status": Answer(666, b"{}"),
    }
    seen: dict[str, Any] = {}
    for fault, answer in faults.items():
        session_upstream.on("*", answer)
        session_upstream.on(CHAT, answer)
        session_upstream.on("/v1/completions", answer)
        for protocol, model in (
            ("openai_chat", "forwarded"),
            ("anthropic_messages", "forwarded"),
            ("openai_chat", "chatting"),
        ):
            path, body = PROTOCOLS[protocol].request(model)
            seen[f"{fault}: {path} of {model}"] = open_server.answer("POST", path, body=body)
    session_upstream.reset()

    golden.check("errors_upstream.json", seen)


KEYS = {
    "no key": {},
    "a wrong key": {"Authorization": "Bearer key-of-nobody"},
    "no bearer": {"Authorization": "Basic a2V5Og=="},
    "a key for another model": {"x-api-key": "key-for-vectors-0123456789abcdef"},
    "a key for nothing": {"api-key": "key-of-prometheus-0123456789abcdef"},
    "a key for everything": {"Authorization": "Bearer key-for-everything-0123456789abcdef"},
}


def test_keys_are_asked_for_in_the_form_of_the_protocol(keyed_server: Server, golden: Golden) -> None:
    """Who may not ask hears it before anything else that is wrong; paths that nobody has want a key too."""
    asked: list[tuple[str, str, object]] = [
        *(("POST", *PROTOCOLS[name].request("echo")) for name in ("openai_chat", "anthropic_messages")),
        *(("POST", *PROTOCOLS[name].request("echo")) for name in ("oip_v1", "oip_v2")),
        ("POST", *PROTOCOLS["openai_embeddings"].request("vectors")),
        ("POST", *PROTOCOLS["openai_chat"].request("vectors")),
        ("POST", *PROTOCOLS["openai_chat"].request("absent")),
        ("POST", *PROTOCOLS["openai_chat"].request("broken")),
        ("POST", CHAT, None),
        ("GET", "/v1/models", None),
        ("GET", "/v2/models/echo", None),
        ("GET", "/absent", None),
        ("GET", "/metrics", None),
        ("GET", "/", None),
        ("POST", "/v2/repository/index", {}),
        ("POST", "/v2/repository/models/echo/unload", {}),
    ]
    seen: dict[str, list[dict[str, Any]]] = {}
    for method, path, body in asked:
        named = f" {body['model']}" if isinstance(body, dict) and "model" in body else ""
        answers = seen.setdefault(f"{method} {path}{named}", [])
        for holder, headers in KEYS.items():
            answer = keyed_server.answer(method, path, body=body, headers=headers)
            # What is answered is not the matter of this test.
            answer = answer if answer["status"] != 200 else {"status": 200}
            same = next((each for each in answers if each["answer"] == answer), None)
            if same is None:
                answers.append({"with": [holder], "answer": answer})
            else:
                same["with"].append(holder)

    golden.check("errors_keys.json", seen)


def test_a_key_hears_its_limits(keyed_server: Server, golden: Golden) -> None:
    """Headers of an answer, and of the refusal of the next one."""
    path, body = PROTOCOLS["openai_chat"].request("echo")
    key = {"Authorization": "Bearer key-with-few-requests-0123456789abcdef"}
    answers = [keyed_server.answer("POST", path, body=body, headers=key) for _ in range(2)]

    golden.check("errors_key_limits.json", answers)


def test_pages_of_other_origins_are_refused(open_server: Server, golden: Golden) -> None:
    """403 for a foreign `Origin` and a rebound host name, 415 for what a page sends without asking first."""
    path, body = PROTOCOLS["openai_chat"].request("echo")
    unload = "/v2/repository/models/echo/unload"
    seen = {
        "a foreign origin": open_server.answer("POST", path, body=body, headers={"Origin": "https://foreign.example"}),
        "another site": open_server.answer("GET", "/v1/models", headers={"Sec-Fetch-Site": "cross-site"}),
        "a rebound name": open_server.answer("GET", "/v1/models", headers={"Host": "foreign.example"}),
        "a preflight": open_server.answer(
            "OPTIONS", path, headers={"Origin": "https://foreign.example", "Access-Control-Request-Method": "POST"}
        ),
        "a form that unloads": open_server.answer(
            "POST", unload, content=b"a=b", headers={"Content-Type": "text/plain"}
        ),
    }

    golden.check("errors_origins.json", seen)


def test_every_answer_has_the_headers_of_security(open_server: Server, golden: Golden) -> None:
    """On a success, an error, a stream and the page alike."""
    path, body = PROTOCOLS["openai_chat"].request("echo")
    page = {"Accept": "text/html"}
    seen = {
        "a chat": open_server.answer("POST", path, body=body, omits=()),
        "a stream": open_server.answer("POST", path, body={**body, "stream": True}, omits=()),
        "an error": open_server.answer("POST", path, body={}, omits=()),
        "an unknown path": open_server.answer("GET", "/absent", omits=()),
        "a probe": open_server.answer("GET", "/livez", omits=()),
        "the page": open_server.answer("GET", "/", headers=page, omits=()),
        "the probe port": open_server.answer("GET", "/livez", port=open_server.probe_port, omits=()),
    }
    assert all(set(each["headers"]) >= COMMON_HEADERS - {"server", "cache-control"} for each in seen.values())

    golden.check("headers.json", {name: each["headers"] for name, each in seen.items()})
