"""What differs between two configs, and what a server that runs would make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from appliance.config import LoadedConfig, differences, load
from appliance.config.base import BaseConfig, Change
from appliance.config.diff import ABSENT, Difference, change_of, keys_of
from appliance.config.json_schema import validation_schema
from appliance.config.root import Config

BASE = """\
models:
  - {name: org/model-1.5, class: proxy, upstreams: [{url: "http://a:1"}]}
  - {name: chat, class: generative, storage: {uri: /models/chat}}
"""

Compare = Callable[..., list[Difference]]


@pytest.fixture
def compare(tmp_path: Path) -> Compare:
    """What differs between two texts."""

    def compare(old: str, new: str, **environ: str) -> list[Difference]:
        first = _loaded(tmp_path / "old" / "a.yaml", old, environ)
        return differences(first, _loaded(tmp_path / "b.yaml", new, environ))

    return compare


def _loaded(file: Path, text: str, environ: dict[str, str]) -> LoadedConfig:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return load(file, environ=environ)


def test_equal_values_are_no_difference(compare: Compare) -> None:
    """Comments, the order of keys and models, defaults that are written out, and the user's own keys."""
    same = """\
x-mine: 7
server: {port: 8080}  # as ever
models:
  - {storage: {uri: /models/chat}, name: chat, class: generative, aliases: []}
  - class: proxy
    name: org/model-1.5
    upstreams: [{url: "http://a:1", x-note: here}]
"""

    assert compare(BASE, same) == []


@pytest.mark.parametrize(
    ("more", "path", "new", "change"),
    [
        ("logging: {level: debug}", "logging.level", "debug", "hot"),
        ("expect: [{path: /livez}]", "expect[0]", {"path": "/livez"}, "hot"),
        ("server: {drain_seconds: 5}", "server.drain_seconds", 5, "hot"),
        ("server: {port: 9000}", "server.port", 9000, "restart"),
        ("metadata: {name: talk}", "metadata.name", "talk", "restart"),
        ("storage: {transfer: {parallel: 4}}", "storage.transfer.parallel", 4, "hot"),
        ("storage: {pvc_root: /volumes}", "storage.pvc_root", "/volumes", "restart"),
    ],
)
def test_a_key_has_its_path_its_values_and_its_change(
    compare: Compare, more: str, path: str, new: object, change: str
) -> None:
    """One key is one difference, and says what it asks of a server that runs."""
    (found,) = compare(BASE, BASE + more)

    assert (found.path, found.new, found.change, found.model) == (path, new, change, None)


@pytest.mark.parametrize(
    ("before", "after", "path", "old", "new"),
    [
        ("uri: /models/chat", "uri: /models/other", "models.chat.storage.uri", "/models/chat", "/models/other"),
        ("class: generative", "class: generative, on_failure: exit", "models.chat.on_failure", "stay", "exit"),
        ('"http://a:1"', '"http://b:1"', "models.org/model-1.5.upstreams[0].url", "http://a:1", "http://b:1"),
        ('"http://a:1"}', '"http://a:1"}, {url: "http://b:1"}', "models.org/model-1.5.upstreams[1]", ABSENT, None),
        ("name: chat", "name: talk", "models.chat", None, ABSENT),
    ],
)
def test_a_model_is_known_by_its_name(
    compare: Compare, before: str, after: str, path: str, old: object, new: object
) -> None:
    """Paths name models as `--set` does, and most keys of a model are a swap."""
    first, *_ = compare(BASE, BASE.replace(before, after))

    assert first.path == path
    assert first.change is Change.SWAP
    assert first.model is not None
    assert old is None or first.old == old
    assert new is None or first.new == new


def test_names_and_presets_of_a_model_change_while_it_serves(compare: Compare) -> None:
    """No engine is loaded again for an alias, or for the temperature of one."""
    keys = "aliases: [a, {name: b, request: {defaults: {temperature: 0.2}}}], request: {system_prompt: Hi}"
    found = compare(BASE, BASE.replace("class: generative", f"class: generative, {keys}"))

    assert [(each.path, each.new, each.change) for each in found] == [
        ("models.chat.aliases", ["a", {"name": "b", "request": {"defaults": {"temperature": 0.2}}}], Change.HOT),
        ("models.chat.request.system_prompt", "Hi", Change.HOT),
    ]


def test_limits_of_a_model_change_while_it_serves(compare: Compare) -> None:
    """They are applied at once."""
    found = compare(BASE, BASE.replace("class: proxy", "class: proxy, limits: {queued: 7}, slo: {ttft_seconds: 2}"))

    assert [(each.path, each.change) for each in found] == [
        ("models.org/model-1.5.limits.queued", Change.HOT),
        ("models.org/model-1.5.slo.ttft_seconds", Change.HOT),
    ]


def test_an_engine_that_workers_share_is_not_replaced(compare: Compare) -> None:
    """It has met its front ends once and for all; models without one are swapped as ever."""
    longer = BASE.replace("{uri: /models/chat}", "{uri: /models/chat}, engine: {max_model_len: 8}")
    longer = longer.replace("http://a:1", "http://b:1")
    workers = "server: {workers: 2}\n"

    shared = {each.model: each.change for each in compare(BASE + workers, longer + workers)}
    (removed,) = compare(BASE + workers, BASE[: BASE.index("  - {name: chat")] + workers)
    alone = {each.change for each in compare(BASE, longer)}

    assert shared == {"org/model-1.5": Change.SWAP, "chat": Change.RESTART}
    assert removed.change is Change.RESTART
    assert alone == {Change.SWAP}


def test_secrets_are_never_shown(compare: Compare) -> None:
    """Not what came out of a reference, as a whole or in part, and not what is typed in the place of a secret."""
    old = BASE.replace('"}]', '", headers: {x-tenant: plain-text-1}, api_key: "plain-key-1"}]')
    new = BASE.replace('"}]', '/${env:PART}", headers: {x-tenant: plain-text-2}, api_key: "${env:KEY}"}]')
    found = compare(old, new + "logging: {level: '${env:LEVEL}'}", KEY="the-key-1", PART="part-1", LEVEL="debug")
    shown = {each.path.partition("[0].")[2] or each.path: (each.old, each.new) for each in found}

    assert shown == {
        "url": ("***", "***"),
        "api_key": ("***", "***"),
        "headers.x-tenant": ("***", "***"),
        "logging.level": ("info", "debug"),
    }


def test_every_key_declares_its_change() -> None:
    """A model is replaced for any key but its names, presets, fallbacks, limits, promises; others wait."""
    of_models = {key for key in keys_of(Change.HOT) if key.startswith("models.")}
    hot = set(keys_of(Change.HOT)) - of_models
    keys = set(_keys(validation_schema()))

    assert of_models == {f"models.NAME.{key}" for key in ("aliases", "fallback", "limits", "request", "slo")}
    assert hot <= keys
    assert set(keys_of(Change.SWAP)) == {"models"}
    assert {key: _change(key) for key in keys if key not in hot} | dict.fromkeys(hot, Change.HOT) == {
        key: _expected(key, hot) for key in keys
    }


def _expected(key: str, hot: set[str]) -> Change:
    if key.split(".")[0] == "models":
        return Change.SWAP
    return Change.HOT if any(f"{key}.".startswith(f"{each}.") for each in hot) else Change.RESTART


def _change(key: str) -> Change:
    config: Any = Config
    change = Change.RESTART
    for part in key.split("."):
        field = next((each for name, each in config.model_fields.items() if (each.alias or name) == part), None)
        if field is None:
            break
        change = change_of(field, change)
        config = field.annotation
        if not (isinstance(config, type) and issubclass(config, BaseConfig)):
            break
    return change


def _keys(schema: Mapping[str, Any]) -> Iterator[str]:
    def below(part: Mapping[str, Any], path: str) -> Iterator[str]:
        part = schema["$defs"][part["$ref"].rsplit("/", 1)[1]] if "$ref" in part else part
        for key, value in part.get("properties", {}).items():
            yield f"{path}{key}"
            yield from below(value, f"{path}{key}.")

    return below(schema, "")
