"""The model name and the changes of the config, in requests and responses."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from appliance.config.upstreams import RequestRewriteConfig
from appliance.core.json_edit import JsonObject
from appliance.core.model import Operation
from appliance.core.rewrite import RequestBody, RequestRewriter, rename_response

CHAT, MESSAGE, RESPONSE = Operation.CHAT_COMPLETION, Operation.MESSAGE, Operation.RESPONSE


def _rewritten(config: RequestRewriteConfig, operation: Operation, body: bytes) -> bytes:
    document = JsonObject(body)
    RequestRewriter(config).rewrite(operation, document)
    return document.write()


def test_without_a_config_nothing_is_changed() -> None:
    """Every byte is the same."""
    body = b'{ "messages": [ ],"seed":1.0}'

    assert _rewritten(RequestRewriteConfig(), CHAT, body) == body


def test_defaults_overrides_and_drops() -> None:
    """The client overrides a default but not an override; a dropped field can be set again."""
    config = RequestRewriteConfig(
        defaults={"temperature": 0.5, "top_p": 1, "stream_options": {"include_usage": True}},
        override={"user": "us", "chat_template_kwargs": {"enable_thinking": False}},
        drop=("user", "logit_bias"),
    )
    body = (
        b'{"temperature": 0.10, "user": "them", "logit_bias": {}, "stream_options": {"include_usage": false}, '
        b'"chat_template_kwargs": {"a": 1}, "unknown": null}'
    )

    made = _rewritten(config, CHAT, body)

    assert json.loads(made) == {
        "temperature": 0.1,
        "stream_options": {"include_usage": False},
        "chat_template_kwargs": {"a": 1, "enable_thinking": False},
        "unknown": None,
        "top_p": 1,
        "user": "us",
    }
    assert b"0.10" in made


@pytest.mark.parametrize(
    ("operation", "before", "after"),
    [
        (CHAT, {"messages": []}, {"messages": [{"role": "system", "content": "P"}]}),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "u"}]},
            {"messages": [{"role": "system", "content": "P"}, {"role": "user", "content": "u"}]},
        ),
        (
            CHAT,
            {"messages": [{"content": "own\n", "role": "developer"}, {"role": "user", "content": "u"}]},
            {"messages": [{"content": "P\n\nown\n", "role": "developer"}, {"role": "user", "content": "u"}]},
        ),
        (
            CHAT,
            {"messages": [{"role": "system", "content": [{"type": "text", "text": "own"}]}]},
            {
                "messages": [
                    {"role": "system", "content": [{"type": "text", "text": "P"}, {"type": "text", "text": "own"}]}
                ]
            },
        ),
        (Operation.TOKENIZE, {"prompt": "p"}, {"prompt": "p"}),
        (CHAT, {"messages": "wrong"}, {"messages": "wrong"}),
        (CHAT, {"messages": ["wrong"]}, {"messages": [{"role": "system", "content": "P"}, "wrong"]}),
        (MESSAGE, {"messages": []}, {"messages": [], "system": "P"}),
        (MESSAGE, {"system": "own"}, {"system": "P\n\nown"}),
        (MESSAGE, {"system": []}, {"system": [{"type": "text", "text": "P"}]}),
        (RESPONSE, {"input": "i", "instructions": None}, {"input": "i", "instructions": "P"}),
        (Operation.EMBEDDING, {"input": "i"}, {"input": "i"}),
    ],
)
def test_a_system_prompt_goes_before_the_clients_own(operation: Operation, before: Any, after: Any) -> None:
    """Where each protocol has it, in one message if there is one; the upstream reports invalid requests."""
    config = RequestRewriteConfig(system_prompt="P")

    assert json.loads(_rewritten(config, operation, json.dumps(before).encode())) == after


def test_later_settings_win() -> None:
    """Those of an alias go on top of the model's: its defaults, overrides and prompt; all of the drops hold."""
    model = RequestRewriteConfig(
        defaults={"temperature": 1, "top_p": 0.9}, override={"seed": 1}, drop=("user",), system_prompt="model"
    )
    alias = RequestRewriteConfig(
        defaults={"temperature": 0.2, "stop": "."}, override={"seed": 2}, drop=("n",), system_prompt="alias"
    )
    document = JsonObject(b'{"user": "u", "n": 3, "messages": [], "stop": "!"}')

    RequestRewriter(model, alias).rewrite(CHAT, document)

    assert json.loads(document.write()) == {
        "messages": [{"role": "system", "content": "alias"}],
        "stop": "!",
        "temperature": 0.2,
        "top_p": 0.9,
        "seed": 2,
    }


def test_an_operation_without_changes_needs_no_parsing() -> None:
    """A prompt alone changes the operations that have one."""
    prompt = RequestRewriter(RequestRewriteConfig(system_prompt="P"))

    assert not RequestRewriter(RequestRewriteConfig()).changes(CHAT)
    assert prompt.changes(CHAT)
    assert not prompt.changes(Operation.EMBEDDING)


def test_other_messages_keep_their_bytes() -> None:
    """Only the system prompt is written."""
    body = b'{"messages": [ {"role":"system","content":"a\\u00e9"} , {"role": "user", "content": "\\u00e9", "n": 1.0}]}'

    made = _rewritten(RequestRewriteConfig(system_prompt="P"), CHAT, body)

    assert made == body.replace(b'"a\\u00e9"', b'"P\\n\\na\\u00e9"')


def test_a_response_is_renamed_in_its_outermost_object_only() -> None:
    """Numbers keep their digits; a response without a name gets none."""
    body = b'{"object": "list", "data": [{"model": "deep", "embedding": [1.50]}], "model": "upstream-v2"}'

    assert rename_response(body, "mine") == body.replace(b"upstream-v2", b"mine")
    assert rename_response(b'{"results": []}', "mine") == b'{"results": []}'
    assert rename_response(b"[1]", "mine") == b"[1]"
    assert rename_response(b"oops", "mine") == b"oops"


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"a":1.0, "model":"m\\u00e9", "b":[]}', "m\u00e9"),
        (b'{"a":1.0}', None),
        (b'{"a":1.0, "model":null}', None),
        (b'{"model":"x", "a":1.0, "model":"y"}', "y"),
    ],
)
def test_a_body_gets_another_model_name(body: bytes, name: str | None) -> None:
    """A body without a name gets one."""
    named = RequestBody.of(body, "application/json")
    sent = named.with_model('u"p')

    assert named.model == name
    assert json.loads(sent) == json.loads(body) | {"model": 'u"p'}
    assert b"1.0" in sent


def test_a_body_with_its_own_name_has_the_same_bytes() -> None:
    """Nothing is written anew."""
    body = b'{ "model" :"m",\t"a":1e5 }'

    assert RequestBody.of(body, "").with_model("m") == body


def test_a_form_gets_another_model_name() -> None:
    """The file in it is unchanged; a form without a name stays without."""
    head = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'
    form = head % b"file" + b"\xff\x00m\r\n" + head % b"model" + b"m\r\n--b--\r\n"
    named = RequestBody.of(form, "multipart/form-data; boundary=b")

    assert named.model == "m"
    assert named.with_model("up") == form.replace(b"\r\n\r\nm\r\n", b"\r\n\r\nup\r\n")
    assert (
        RequestBody.of(head % b"file" + b"x\r\n--b--", "multipart/form-data; boundary=b").with_model("up").count(b"up")
        == 0
    )


def test_names_are_written_as_json() -> None:
    """A quote in a name does not break a response."""
    assert msgspec.json.decode(rename_response(b'{"model":"a"}', 'b"c')) == {"model": 'b"c'}


def test_a_default_replaces_null() -> None:
    """A client that sends null for a field has not set it, in objects either."""
    config = RequestRewriteConfig(defaults={"temperature": 0.3, "stream_options": {"include_usage": True}})
    body = b'{"temperature": null, "stream_options": {"include_usage": null, "a": null}}'

    made = json.loads(_rewritten(config, CHAT, body))

    assert made == {"temperature": 0.3, "stream_options": {"include_usage": True, "a": None}}


@pytest.mark.parametrize(
    "settings",
    [
        {"override": {"stream": True}},
        {"defaults": {"stream": False}},
        *({"drop": [name]} for name in ("stream", "model", "messages", "prompt", "input")),
    ],
)
def test_what_the_server_reads_or_every_request_needs_stays(settings: dict[str, Any]) -> None:
    """A stream for a client that asked for none is as wrong as a request without its text."""
    with pytest.raises(ValueError, match="must leave it out"):
        RequestRewriteConfig(**settings)
