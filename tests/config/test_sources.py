"""The environment and `--set`, merged into the file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from appliance.config import Config, LoadedConfig
from appliance.core.errors import ConfigError

CONFIG = """\
models:
  - name: smollm2
    class: generative
    aliases: [small]
    storage: {uri: file:///a}
    engine: {max_model_len: 1024, max_num_seqs: 4}
  - name: org/Model-1.5
    class: generative
    storage: {uri: file:///b}
  - name: org/Model
    class: generative
    storage: {uri: file:///c}
server:
  port: 8081
"""

Where = Callable[[Config], object]


def engine(config: Config, index: int = 0) -> dict[str, object]:
    """What is set of a model's engine section."""
    return config.models[index].engine.model_dump(exclude_unset=True)  # type: ignore[attr-defined, no-any-return] # generative


OVERRIDES: dict[str, tuple[dict[str, str], tuple[str, ...], Where, object]] = {
    "the environment over the file": (
        {"APPLIANCE__SERVER__PORT": "9000"}, (), lambda config: config.server.port, 9000,
    ),
    "an option over the environment": (
        {"APPLIANCE__SERVER__PORT": "9000"}, ("server.port=9001",), lambda config: config.server.port, 9001,
    ),
    "the last of two options": (
        {}, ("server.port=9000", "server.port=9001"), lambda config: config.server.port, 9001,
    ),
    "a variable in lower case": (
        {"appliance__server__port": "9000"}, (), lambda config: config.server.port, 9000,
    ),
    "a section that the file lacks": (
        {"APPLIANCE__LOGGING__LEVEL": "debug"}, (), lambda config: config.logging.level, "debug",
    ),
    "a key beside others": (
        {"APPLIANCE__MODELS__SMOLLM2__ENGINE__MAX_MODEL_LEN": "4096"},
        (),
        engine,
        {"max_model_len": 4096, "max_num_seqs": 4},
    ),
    "an option beside others": (
        {}, ("models.smollm2.engine.max_model_len=4096",), engine, {"max_model_len": 4096, "max_num_seqs": 4},
    ),
    "a model whose name has signs": (
        {"APPLIANCE__MODELS__ORG_MODEL_1_5__ENGINE__MAX_NUM_SEQS": "2"},
        (),
        lambda config: engine(config, 1),
        {"max_num_seqs": 2},
    ),
    "a model whose name has dots": (
        {}, ("models.org/Model-1.5.engine.max_num_seqs=2",), lambda config: engine(config, 1), {"max_num_seqs": 2},
    ),
    "a model whose name begins another's": (
        {}, ("models.org/Model.engine.max_num_seqs=2",), lambda config: engine(config, 2), {"max_num_seqs": 2},
    ),
    "an engine argument": (
        {"APPLIANCE__MODELS__ORG_MODEL__ENGINE__ARGS__BLOCK_SIZE": "32"},
        (),
        lambda config: engine(config, 2),
        {"args": {"block_size": 32}},
    ),
    "a list": (
        {"APPLIANCE__MODELS__SMOLLM2__ALIASES": '["a", "b"]'}, (), lambda config: config.models[0].aliases, ("a", "b"),
    ),
    "a list in an option": (
        {}, ("models.smollm2.aliases=[a, b]",), lambda config: config.models[0].aliases, ("a", "b"),
    ),
    "a mapping, key by key": (
        {"APPLIANCE__MODELS__SMOLLM2__ENGINE": '{"max_num_seqs": 8}'},
        (),
        engine,
        {"max_model_len": 1024, "max_num_seqs": 8},
    ),
    "an empty mapping, which has no keys": (
        {"APPLIANCE__SERVER": "{}"}, (), lambda config: config.server.port, 8081,
    ),
    "a section before its parts": (
        {"APPLIANCE__SERVER__PORT": "9000", "APPLIANCE__SERVER": '{"port": 1, "drain_seconds": 2}'},
        (),
        lambda config: (config.server.port, config.server.drain_seconds),
        (9000, 2),
    ),
    "text that looks like a number": (
        {"APPLIANCE__MODELS__SMOLLM2__TOOL_CALL_PARSER": "1"},
        (),
        lambda config: config.models[0].tool_call_parser,  # type: ignore[attr-defined] # generative
        "1",
    ),
    "null, which is a key left out": (
        {}, ("models.smollm2.engine.max_num_seqs=null",), engine, {"max_model_len": 1024, "max_num_seqs": None},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("environ", "overrides", "where", "value"), OVERRIDES.values(), ids=OVERRIDES)
def test_an_override_changes_what_it_names_and_nothing_else(
    environ: dict[str, str],
    overrides: tuple[str, ...],
    where: Where,
    value: object,
    load_text: Callable[..., LoadedConfig],
) -> None:
    """The environment overrides the file, and `--set` overrides both."""
    config = load_text(CONFIG, *overrides, environ=environ).config

    assert where(config) == value


PROXY = """\
models:
  - name: p
    class: proxy
    upstreams: [{url: http://llm:8000}]
  - name: chat
    class: adapter
    target: p
    protocol: {kind: completions, chat_template: "{{ messages }}"}
"""

MODELS = "[{name: new, class: generative, storage: {uri: file:///d}}]"

# Any: the keys of a model depend on its class.
PARTS: dict[str, tuple[str, dict[str, str], tuple[str, ...], Callable[[Any], object], object]] = {
    "text that reads like a mapping where anything may be": (
        PROXY,
        {"APPLIANCE__MODELS__P__REQUEST__DEFAULTS__USER": "team: search"},
        (),
        lambda config: config.models[0].request.defaults,
        {"user": "team: search"},
    ),
    "a mapping in the place of a name": (
        PROXY,
        {},
        ("models.chat.target={url: http://other:8000}",),
        lambda config: config.models[1].target.url,
        "http://other:8000",
    ),
    "a key of a part that a reference brings": (
        PROXY + "server: ${env:SERVER}\n",
        {"SERVER": "{port: 9000, drain_seconds: 2}", "APPLIANCE__SERVER__PORT": "9001"},
        (),
        lambda config: (config.server.port, config.server.drain_seconds),
        (9001, 2),
    ),
    "a key of a model that another variable brings": (
        PROXY,
        {"APPLIANCE__MODELS": MODELS, "APPLIANCE__MODELS__NEW__ON_FAILURE": "exit"},
        (),
        lambda config: [(model.name, model.on_failure) for model in config.models],
        [("new", "exit")],
    ),
    "a model by the name that another variable gives it, and by the one before": (
        PROXY,
        {
            "APPLIANCE__MODELS__P__NAME": "front",
            "APPLIANCE__MODELS__P__BALANCE": "round_robin",
            "APPLIANCE__MODELS__FRONT__KEEP_ALIVE_SECONDS": "5",
            "APPLIANCE__MODELS__CHAT__TARGET": "front",
        },
        (),
        lambda config: (config.models[0].name, config.models[0].balance, config.models[0].keep_alive_seconds),
        ("front", "round_robin", 5),
    ),
    "a key of a model that another option brings": (
        PROXY,
        {},
        (f"models={MODELS}", "models.new.on_failure=exit", "models.new.name=newer", "models.newer.aliases=[a]"),
        lambda config: [(model.name, model.on_failure, model.aliases) for model in config.models],
        [("newer", "exit", ("a",))],
    ),
}


@pytest.mark.parametrize(("text", "environ", "overrides", "where", "value"), PARTS.values(), ids=PARTS)
def test_an_override_sees_the_values_before_it(
    text: str,
    environ: dict[str, str],
    overrides: tuple[str, ...],
    where: Callable[[Any], object],
    value: object,
    load_text: Callable[..., LoadedConfig],
) -> None:
    """An override may replace a value of another type, and set a key in what an earlier one brings."""
    config = load_text(text, *overrides, environ=environ).config

    assert where(config) == value


REFUSED: dict[str, tuple[dict[str, str], tuple[str, ...], str]] = {
    "an unknown section": (
        {"APPLIANCE__SEVER__PORT": "1"},
        (),
        'environment APPLIANCE__SEVER__PORT: unknown setting SEVER; did you mean "SERVER"?',
    ),
    "an unknown key": (
        {"APPLIANCE__SERVER__PROT": "1"},
        (),
        'environment APPLIANCE__SERVER__PROT: server.prot: unknown key; did you mean "port"?',
    ),
    "an unknown model": (
        {"APPLIANCE__MODELS__SMOLM2__NAME": "a"},
        (),
        'environment APPLIANCE__MODELS__SMOLM2__NAME: unknown model SMOLM2; did you mean "SMOLLM2"?',
    ),
    "an unknown key of a model": (
        {"APPLIANCE__MODELS__SMOLLM2__ENGIN__DTYPE": "auto"},
        (),
        'environment APPLIANCE__MODELS__SMOLLM2__ENGIN__DTYPE: unknown setting ENGIN; did you mean "ENGINE"?',
    ),
    "nothing after the prefix": (
        {"APPLIANCE__": "1"},
        (),
        (
            "environment APPLIANCE__: unknown setting ; the settings here are "
            "BATCHES, EXPECT, LOGGING, METADATA, MODELS, RESPONSES, SERVER, STORAGE, TRACING"
        ),
    ),
    "an entry of a list": (
        {"APPLIANCE__EXPECT__0__STATUS": "1"},
        (),
        "environment APPLIANCE__EXPECT__0__STATUS: expect: is a mapping; must be a list",
    ),
    "an entry of a list that the file has": (
        {"APPLIANCE__MODELS__SMOLLM2__ALIASES__0": "a"},
        (),
        (
            "environment APPLIANCE__MODELS__SMOLLM2__ALIASES__0: "
            "goes into a list, whose entries have no paths; must set the list as a whole, such as [a, b]"
        ),
    ),
    "a value that does not fit": (
        {"APPLIANCE__SERVER__PORT": "99999"},
        (),
        "environment APPLIANCE__SERVER__PORT: server.port: is ***; must be at most 65535",
    ),
    "a value of another type": (
        {"APPLIANCE__SERVER__PORT": "none"},
        (),
        "environment APPLIANCE__SERVER__PORT: server.port: is ***; must be a whole number",
    ),
    "bytes that are not text": (
        {"APPLIANCE__SERVER__HOST": "\udcff"},
        (),
        "environment APPLIANCE__SERVER__HOST: is not UTF-8 text; must be UTF-8",
    ),
    "an option without a value": (
        {},
        ("server.port",),
        "--set server.port: is not an assignment; must be a path, = and a value in YAML, such as server.port=9000",
    ),
    "an option without a path": (
        {},
        ("=1",),
        "--set =1: is not an assignment; must be a path, = and a value in YAML, such as server.port=9000",
    ),
    "an option with a hole in its path": (
        {},
        ("server..port=1",),
        "--set server..port=1: is not an assignment; must be a path, = and a value in YAML, such as server.port=9000",
    ),
    "an option with an unknown key": (
        {},
        ("server.prot=1",),
        '--set server.prot=1: server.prot: unknown key; did you mean "port"?',
    ),
    "an option with an unknown model": (
        {},
        ("models.smolm2.name=a",),
        '--set models.smolm2.name=a: unknown model smolm2; did you mean "smollm2"?',
    ),
    "an option into a list": (
        {},
        ("models.smollm2.aliases.first=a",),
        (
            "--set models.smollm2.aliases.first=a: "
            "goes into a list, whose entries have no paths; must set the list as a whole, such as [a, b]"
        ),
    ),
    "an option that is text where a number must be": (
        {},
        ('server.port="9000"',),
        '--set server.port="9000": server.port: is "9000"; must be a whole number, without quotes',
    ),
    "an option that is not YAML": (
        {},
        ("server.port=[",),
        (
            "--set server.port=***: is not YAML: while parsing a flow node from line 1, expected the node content, "
            "but found '<stream end>'; must be YAML 1.2"
        ),
    ),
    "an option with a tag": (
        {},
        ("server.host=!!python/name:os.system",),
        ("--set server.host=***: has a tag; must be plain YAML, without tags"),
    ),
}


@pytest.mark.parametrize(("environ", "overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_an_error_of_an_override_names_it(
    environ: dict[str, str], overrides: tuple[str, ...], message: str, load_text: Callable[..., LoadedConfig]
) -> None:
    """An error of a variable or an option names it, and says what would be right."""
    with pytest.raises(ConfigError) as caught:
        load_text(CONFIG, *overrides, environ=environ)

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("environ", "overrides", "source"),
    [
        ({}, ("models.chat.target.url=http://other:8000",), "--set models.chat.target.url=http://other:8000"),
        ({"APPLIANCE__MODELS__CHAT__TARGET__URL": "http://x"}, (), "environment APPLIANCE__MODELS__CHAT__TARGET__URL"),
    ],
)
def test_an_override_below_text_is_an_error(
    environ: dict[str, str], overrides: tuple[str, ...], source: str, load_text: Callable[..., LoadedConfig]
) -> None:
    """Text has no keys, so that a mapping must be set as a whole."""
    with pytest.raises(ConfigError) as caught:
        load_text(PROXY, *overrides, environ=environ)

    message = "goes into models[1].target, which is no mapping; must set it as a whole, such as {key: value}"
    assert str(caught.value) == f"{source}: {message}"


def test_a_variable_that_means_two_models_is_an_error(load_text: Callable[..., LoadedConfig]) -> None:
    """A variable that may mean two models means neither."""
    text = CONFIG.replace("smollm2", "org_model")

    with pytest.raises(ConfigError, match="ORG_MODEL__ENGINE: means more than one model"):
        load_text(text, environ={"APPLIANCE__MODELS__ORG_MODEL__ENGINE": "{}"})


def test_the_environment_does_not_hide_an_error_of_the_file(load_text: Callable[..., LoadedConfig]) -> None:
    """Where the file has no mapping for the key, the error is that of the file."""
    with pytest.raises(ConfigError, match=r"config\.yaml:1:9: server: is 3; must be a mapping"):
        load_text("server: 3\n" + CONFIG.partition("server")[0], environ={"APPLIANCE__SERVER__PORT": "1"})


def test_an_empty_variable_unsets_what_may_be_unset(load_text: Callable[..., LoadedConfig]) -> None:
    """A variable with no value is null where null is a value, as for a port that is not used."""
    text = CONFIG + "  probe_port: 9090\n"

    assert load_text(text, environ={"APPLIANCE__SERVER__PROBE_PORT": ""}).config.server.probe_port is None


def test_the_config_itself_does_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A config made in Python is what it was given."""
    monkeypatch.setenv("APPLIANCE__SERVER__PORT", "9000")
    storage = {"uri": "file:///a"}

    config = Config.model_validate({"models": [{"name": "a", "class": "generative", "storage": storage}]})

    assert config.server.port == 8080
