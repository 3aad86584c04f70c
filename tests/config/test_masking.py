"""Secrets are never shown."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.cli.diff import as_json, as_text
from appliance.config import LoadedConfig
from appliance.config.diff import differences
from appliance.config.json_schema import engine_schema, schema_of
from appliance.config.masking import is_private_name, is_secret_name
from appliance.core.errors import ConfigError
from appliance.ui.redacted_config import RedactedConfig

SECRET = "hunter2-hunter2"

# Every kind of fault that quotes a value, with a secret for the value.
FAULTS = {
    "a type": "server: {port: '${env:SECRET}'}",
    "a choice": "logging: {level: '${env:SECRET}'}",
    "a pattern": "expect: [{path: '${env:SECRET}'}]",
    "a part of a value": "expect: [{path: 'a-${env:SECRET}'}]",
    "a file": "logging: {format: '${file:secret}'}",
    "a name": "x-a: 1",
    "an engine argument": "x-a: 1",
}


@pytest.mark.parametrize("line", FAULTS.values(), ids=FAULTS)
def test_a_secret_is_in_no_message_and_no_traceback(
    line: str, tmp_path: Path, load_text: Callable[..., LoadedConfig]
) -> None:
    """An error of a value from outside shows `***`, and does not carry the value."""
    (tmp_path / "secret").write_text(SECRET)
    text = f"""\
{line}
models:
  - {{name: '${{env:SECRET}}', class: generative, storage: {{uri: file:///a}}}}
  - {{name: '${{env:SECRET}}', class: '${{env:SECRET}}', storage: {{uri: file:///a}}}}
  - name: c
    class: generative
    storage: {{uri: file:///a}}
    engine: {{args: {{seed: '${{env:SECRET}}', load_format: '${{env:SECRET}}'}}}}
"""

    with pytest.raises(ConfigError) as caught:
        load_text(text, environ={"SECRET": SECRET, "APPLIANCE__SERVER__DRAIN_SECONDS": SECRET})

    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.problems)
    assert "***" in shown
    assert SECRET not in shown


def test_there_is_no_suggestion_for_a_secret(load_text: Callable[..., LoadedConfig]) -> None:
    """There is no did-you-mean for a value from outside: it would give most of the value away."""
    text = "models: [{name: a, class: generative, storage: {uri: '${env:URI}'}}]\nlogging: {level: '${env:LEVEL}'}\n"

    with pytest.raises(ConfigError) as caught:
        load_text(text, environ={"LEVEL": "infoo", "URI": "pypy://a==1"})

    assert [problem.path for problem in caught.value.problems] == ["models[0].storage.uri", "logging.level"]
    assert "did you mean" not in str(caught.value)
    assert "pypy" not in str(caught.value)


def test_texts_from_outside_are_secrets(load_text: Callable[..., LoadedConfig]) -> None:
    """The texts of the environment that stand in the config as text are its secrets, and nothing else is."""
    text = """\
models:
  - name: a
    class: generative
    storage: {uri: 'hf://${env:BUCKET}/${env:UNSET:-default}'}
server: {port: '${env:PORT}'}
logging: {level: '${env:LEVEL}'}
"""
    environ = {
        "BUCKET": "private-bucket",
        "PORT": "9000",
        "LEVEL": "debug",
        "APPLIANCE__MODELS__A__CHAT_TEMPLATE": "hidden",
        "APPLIANCE__MODELS__A__ALIASES": '["alias"]',
        "APPLIANCE__SERVER__DRAIN_SECONDS": "7",
    }

    assert load_text(text, environ=environ).secrets == {"private-bucket", "hidden", "alias"}


def test_an_override_replaces_the_secret_too(load_text: Callable[..., LoadedConfig]) -> None:
    """A secret that `--set` replaces is no part of the config any more."""
    text = "models: [{name: a, class: generative, storage: {uri: '${env:URI}'}}]\n"

    loaded = load_text(text, "models.a.storage.uri=file:///b", environ={"URI": "file:///a"})

    assert loaded.secrets == frozenset()


WRITTEN = "hunter2-hunter2"

# A value with a secret, and a fault of it or beside it on its line.
SPELLED_OUT = {
    "an address with a password": "storage: {uri: 's3x://user:hunter2-hunter2@host/a'}",
    "a signed address": "storage: {uri: 'https://host/a?X-Amz-Signature=hunter2-hunter2', nonsense: 1}",
    "an option of a storage": "storage: {uri: '/a', options: {any: {key: hunter2-hunter2}}, nonsense: 1}",
    "an upstream's password": "upstreams: [{url: 'http://user:hunter2-hunter2@host/v1'}]",
    "an upstream's query": "upstreams: [{url: 'http://host/v1?key=hunter2-hunter2', wieght: 1}]",
    "a key": "upstreams: [{url: 'http://host/v1', api_key: hunter2-hunter2, wieght: 1}]",
    "a key that is a list": "upstreams: [{url: 'http://host/v1', api_key: [hunter2-hunter2]}]",
    "a misspelt key": "upstreams: [{url: 'http://host/v1', api_kye: hunter2-hunter2}]",
    "an API key with two wrong letters": "upstreams: [{url: 'http://host/v1', apy_kei: hunter2-hunter2}]",
    "a cookie with two wrong letters": "upstreams: [{url: 'http://host/v1', coukei: hunter2-hunter2}]",
    "a secret with two wrong letters": "upstreams:\n    - url: http://host/v1\n      sekrat: hunter2-hunter2",
    "a header": "upstreams: [{url: 'http://host/v1', headers: {X-Mine: hunter2-hunter2, 'a b': c}}]",
    "a header with a line break": 'upstreams: [{url: "http://host/v1", headers: {X-Mine: "hunter2-hunter2\\n"}}]',
    "an argument of a class": "engine: {python: 'a:B', args: {password: hunter2-hunter2}, nonsense: 1}",
}

OF_SERVER = {
    "the password of a key": "server: {tls: {certificate: a, key: b, key_password: hunter2-hunter2, nonsense: 1}}",
    "a password that is a mapping": "server: {tls: {certificate: a, key: b, key_password: {a: hunter2-hunter2}}}",
    "a secret of a store": "storage: {credentials: {s3: [{secret_access_key: hunter2-hunter2, b: 1}]}}",
    "a token of the hub": "storage: {credentials: {hub: [{token: hunter2-hunter2, nonsense: 1}]}}",
    "a header of a sink": "logging: {payloads: {url: 'http://a/', headers: {X-Key: hunter2-hunter2}, nonsense: 1}}",
    "an address in free keys": "x-base: {uri: 'http://user:hunter2-hunter2@host/'}\nserver: nonsense",
    "what is no YAML": "server: {tls: {key_password: hunter2-hunter2",
    "an address in what is no YAML": "a: http://user:hunter2-hunter2@host: b: c",
    "an escape": 'server: {tls: {certificate: a, key: b, key_password: "hunter2\\u002dhunter2", nonsense: 1}}',
    "a long line": "server: {x-pad: '"
    + 80 * "a"
    + "', tls: {certificate: a, key: b, key_password: hunter2-hunter2, c: d}}",
}


@pytest.mark.parametrize("line", [*SPELLED_OUT.values(), *OF_SERVER.values()], ids=[*SPELLED_OUT, *OF_SERVER])
def test_a_secret_that_the_file_spells_out_is_not_shown(
    line: str, load_text: Callable[..., LoadedConfig], tmp_path: Path
) -> None:
    """Neither in a message nor in the line of the file, whose caret stays under the error."""
    model = "- {name: a, class: generative, storage: {uri: file:///a}}"
    if line in SPELLED_OUT.values():
        class_ = "proxy" if "upstreams" in line else "generative"
        model = f"- name: a\n    class: {class_}\n    {line}\n    nonsense: 1"
        line = "x-nothing: 1"

    with pytest.raises(ConfigError) as caught:
        load_text(f"{line}\nmodels:\n  {model}\n")

    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.problems)
    assert WRITTEN not in shown
    assert "hunter2" not in shown
    assert "***" in shown or "***" not in line


def test_the_caret_stays_under_the_fault(load_text: Callable[..., LoadedConfig]) -> None:
    """Whether the secret before it is longer or shorter than what is shown for it."""
    for secret in ("hunter2-hunter2-hunter2", "ab"):
        tls = f"{{certificate: a, key_password: {secret}, key: b, nonsense: 1}}"
        with pytest.raises(ConfigError) as caught:
            load_text(
                f"server: {{tls: {tls}}}\nmodels: [{{name: a, class: generative, storage: {{uri: file:///a}}}}]\n"
            )

        (problem,) = caught.value.problems
        line, caret = problem.snippet.split("\n")
        assert line[caret.index("^") :].startswith("nonsense: 1")
        assert "key_password: ***" in line


def _upstream(line: str) -> str:
    return f"models:\n  - name: p\n    class: proxy\n    upstreams:\n      - {line}\n"


def _server(line: str) -> str:
    return f"models: [{{name: a, class: generative, storage: {{uri: file:///a}}}}]\nserver: {line}\n"


# Secrets where they do not belong, so that they are no value of a secret key.
MISPLACED = {
    "text for headers": _upstream("{url: 'http://h/v1', headers: SECRET}"),
    "a list for headers": _upstream("{url: 'http://h/v1', headers: [SECRET]}"),
    "a name of a header": _upstream("{url: 'http://h/v1', headers: {SECRET}}"),
    "a merge into headers": _upstream("{url: 'http://h/v1', headers: {<<: SECRET}}"),
    "text for keys": _server("{api_keys: SECRET}"),
    "text for keys in a block": _server("\n  api_keys: SECRET"),
    "a key in the list": _server("\n  api_keys:\n    - SECRET"),
    "a key as a key": _server("{api_keys: [{SECRET: 1}]}"),
    "a key for its digest": _server("{api_keys: [{name: a, sha256: SECRET}]}"),
    "a key for its digest in a block": _server("\n  api_keys:\n  - name: a\n    sha256: SECRET"),
    "text for credentials": _server("{}\nstorage: {credentials: {s3: SECRET}}"),
    "text for tls": _server("{tls: SECRET}"),
    "an upstream": "models: [{name: p, class: proxy, upstreams: SECRET}]\n",
    "an address without a scheme": _upstream("url: SECRET@x"),
    "an address with an odd path": _upstream("url: https://x/SECRET@y/z#SECRET"),
    "an odd address beside a fault": _upstream("{url: 'https://x/v1#SECRET', wieght: 1}"),
    "an alias": _upstream("{url: 'http://h/v1', api_key: *SECRET}"),
    "an alias in a block": _upstream("url: http://h/v1\n        api_key: *SECRET"),
    "a tag": _upstream("{url: 'http://h/v1', api_key: !!python/object:SECRET {}}"),
    "a tag in a block": _upstream("url: http://h/v1\n        api_key: !!python/object:SECRET {}"),
    "what follows a comma": _server("{tls: {key_password: a,SECRET}}"),
    "an anchor": _server("{port: *k, api_keys: [{name: a, value: *k}]}").replace("models", "x-a: &k SECRET\nmodels"),
    "an anchor in a block": _server("\n  host: &k SECRET\n  port: *k\n  tls: {key_password: *k}"),
    "no YAML": _server("{api_keys: [{name: a, value: SECRET"),
    "no YAML in a block": _server("\n  api_keys:\n    - name: a\n      value: |\n        SECRET: [\n  port: ]"),
    "a reference": _upstream("{url: 'http://h/v1', api_key: '${SECRET}'}"),
}


@pytest.mark.parametrize("text", MISPLACED.values(), ids=MISPLACED)
def test_a_misplaced_secret_is_not_shown(text: str, load_text: Callable[..., LoadedConfig]) -> None:
    """Only where it is, and what must be there."""
    with pytest.raises(ConfigError) as caught:
        load_text(text.replace("SECRET", WRITTEN))

    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.problems)
    assert "hunter2" not in shown
    assert "must" in shown or "unknown key" in shown


@pytest.mark.parametrize(
    "override",
    [
        "server.api_keys=hunter2-hunter2",
        "server.api_keys=[hunter2-hunter2]",
        "server.api_keys=[{name: a, value: hunter2-hunter2",
        "server.api_keys=[{name: a, sha256: hunter2-hunter2}]",
        "server.api_keys=*hunter2-hunter2",
        "server.api_keys=!!python/object:hunter2-hunter2 {}",
        "server.api_keys.hunter2-hunter2=1",
        "server.api_keys[0].value=hunter2-hunter2",
        "server={api_keys: hunter2-hunter2}",
        "server.tls=hunter2-hunter2",
        "server.tls.key_password=*hunter2-hunter2",
        "storage.credentials=hunter2-hunter2",
        "models.a.upstreams[0].api_key=hunter2-hunter2",
        "models=hunter2-hunter2",
        "tracing.headers=hunter2-hunter2",
        "server.tls.key_password=hunter2-hunter2",
        "models.a.upstreams=[{url: 'http://u:hunter2-hunter2@h/v1'}]",
        "models.b.upstreams=[{url: 'http://h/v1', api_key: hunter2-hunter2}]",
        "server.api_keys=[{name: a, value: hunter2-hunter2, nonsense: 1}]",
        "storage.credentials.hub=[{token: hunter2-hunter2, nonsense: 1}]",
    ],
)
def test_a_secret_of_the_command_line_is_not_shown(override: str, load_text: Callable[..., LoadedConfig]) -> None:
    """An error of `--set` names the option without its secret."""
    with pytest.raises(ConfigError) as caught:
        load_text("models: [{name: a, class: generative, storage: {uri: file:///a}}]\n", override)

    assert "hunter2" not in str(caught.value)
    assert "--set" in str(caught.value)


def test_secrets_that_the_file_spells_out_are_hidden_everywhere(load_text: Callable[..., LoadedConfig]) -> None:
    """The log and the page get them as texts to hide, and a comparison shows that they differ."""
    text = """\
models:
  - {{name: a, class: generative, storage: {{uri: 'sftp://user:{0}@host/a?sig={0}-x', options: {{b: [{0}-o]}}}}}}
  - {{name: b, class: proxy, upstreams: [{{url: 'http://host/v1?key={0}', api_key: {0}, headers: {{X-Key: {0}}}}}]}}
server: {{tls: {{certificate: a, key: b, key_password: {0}}}}}
"""
    old, new = load_text(text.format(WRITTEN)), load_text(text.format("correct-horse"))

    shown = RedactedConfig(new.config, new.secrets).as_yaml()
    found = as_text(differences(old, new)) + json.dumps(as_json(differences(old, new)))
    assert {WRITTEN, f"user:{WRITTEN}", f"sig={WRITTEN}-x", f"{WRITTEN}-o", f"key={WRITTEN}"} <= old.secrets
    assert "correct" not in shown + found + repr(new.config.server)
    assert WRITTEN not in found
    assert "models.b.upstreams[0].api_key" in found


def test_a_key_that_is_known_or_unlike_a_secret_is_shown(load_text: Callable[..., LoadedConfig]) -> None:
    """A misspelt key whose right one holds no secret, a number, and the known keys."""
    model = "models: [{name: a, class: generative, storage: {uri: file:///a}, limits: {queu_tokens: 16000}}]"
    azure = "{account: mine, client_secret: hunter2-hunter2, tenant_id: t, client_ie: c}"

    with pytest.raises(ConfigError) as caught:
        load_text(f"{model}\nserver: {{prot: 8080}}\nstorage: {{credentials: {{azure: [{azure}]}}}}")

    assert "{prot: 8080}" in str(caught.value)
    assert "queu_tokens: 16000" in str(caught.value)
    assert is_private_name("clint_secrte")
    assert not any(map(is_private_name, ("account", "client_id", "tokenizer", "prot", "wieght")))


def test_every_secret_of_the_schema_is_known_by_its_name() -> None:
    """A new field that is a secret is hidden in the lines of the file as well, and no other field is taken for one."""
    secret: set[str] = set()
    others: set[str] = set()

    def walk(schema: object) -> None:
        for each in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
            walk(each)
        for name, field in schema.get("properties", {}).items() if isinstance(schema, dict) else ():
            (secret if '"writeOnly": true' in json.dumps(field) else others).add(name)

    walk(schema_of())
    walk(engine_schema())

    # By their place: `storage.credentials.gcs[].key`, and the headers of upstreams and sinks.
    assert {name for name in secret if not is_secret_name(name)} == {"headers", "key", "set"}
    assert {name for name in others - secret if is_secret_name(name)} == set()
