"""`appliance init`: a first file that is right for every class, and never replaces another one unasked."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from terminal import Terminal
from upstreams import Upstream

from appliance.cli.init import TEMPLATES, name_of
from appliance.cli.main import main
from appliance.cli.options import load_config
from appliance.config.models import MODEL_CONFIGS, ProxyConfig


def _init(file: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["init", str(file), *words])


def test_there_is_a_first_file_of_every_class() -> None:
    """A new class brings its own."""
    assert set(TEMPLATES) == set(MODEL_CONFIGS)


@pytest.mark.parametrize("class_", TEMPLATES)
@pytest.mark.parametrize("words", [(), ("--key", "--port", "9000", "--name", "true", "--uri", "http://a/b.onnx?c=%20")])
def test_a_first_file_is_valid(tmp_path: Path, class_: str, words: tuple[str, ...]) -> None:
    """With the defaults, and with a name that YAML would read as a boolean; it has a modeline and `expect`."""
    file = tmp_path / "first.yaml"

    done = _init(file, "--class", class_, *words)

    assert done.exit_code == 0, done.output
    config = load_config(file).config
    assert type(config.models[0]) is MODEL_CONFIGS[class_]
    assert config.expect
    assert file.read_text().startswith("# yaml-language-server: $schema=")
    if words:
        assert (config.models[0].name, config.server.port) == ("true", 9000)
        assert config.server.api_keys
        assert "key of clients, shown once: sk-" in done.stdout


@pytest.mark.parametrize(
    ("words", "served", "model"), [((), "upstream-model", None), (("--name", "mine"), "mine", "upstream-model")]
)
def test_a_proxy_gets_a_model_that_its_upstream_has(
    tmp_path: Path, words: tuple[str, ...], served: str, model: str | None
) -> None:
    """By the name it has there, or by another one."""
    with Upstream() as upstream:
        done = _init(tmp_path / "first.yaml", "--class", "proxy", "--uri", upstream.url, *words)

    assert done.exit_code == 0, done.output
    (config,) = load_config(tmp_path / "first.yaml").config.models
    assert isinstance(config, ProxyConfig)
    assert (config.name, config.upstreams[0].model) == (served, model)


def test_a_wrong_value_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    """The message is that of `validate`."""
    done = _init(tmp_path / "first.yaml", "--name", "a b")

    assert done.exit_code == 2
    assert 'models[0].name: is "a b"; must be letters' in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    """Without --force the file stays as it is."""
    file = tmp_path / "first.yaml"
    file.write_text("mine")

    refused, text = _init(file), file.read_text()
    forced = _init(file, "--force")

    assert (refused.exit_code, text) == (2, "mine")
    assert "replace it with --force" in refused.stderr
    assert forced.exit_code == 0
    assert load_config(file).config.models[0].name == "smollm2"


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("hf://Qwen/Qwen2.5-0.5B-Instruct@main", "qwen2.5-0.5b-instruct"),
        ("s3://bucket/models/llama/", "llama"),
        ("pypi://a-wheel==1.0/pkg/SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct.q4_1"),
        ("oci://registry/models/phi:v1@sha256:00", "phi"),
        ("https://host/?a=b", "host"),
        ("///", "model"),
    ],
)
def test_a_name_is_taken_from_the_uri(uri: str, name: str) -> None:
    """Its last part, without revision, tag and suffix."""
    assert name_of(uri) == name


def test_a_person_is_asked_on_a_terminal(tmp_path: Path) -> None:
    """Each question has a default; wrong answers are asked again."""
    terminal = Terminal("init", folder=tmp_path)
    try:
        for question, answer in {
            "Model class": "proxi",
            'did you mean "proxy"': "proxy",
            "URL of the server [http://127.0.0.1:8000/v1]": "http://llm:8000",
            "Name of the model [": "remote",
            "Port [8080]": "",
            "Require an API key? [y/N]": "y",
        }.items():
            terminal.wait_for(question)
            terminal.type(f"{answer}\n")
        code = terminal.wait()
    finally:
        terminal.close()

    assert code == 0, terminal.text
    assert "serve it with: appliance serve" in terminal.text
    assert load_config(tmp_path / "appliance.yaml").config.models[0].name == "remote"
