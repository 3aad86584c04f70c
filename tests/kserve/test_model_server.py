"""KServe's arguments and flags of a server: each is honoured, or refused by name."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme

from appliance.core.errors import ConfigError
from appliance.kserve import Model, ModelRepository, ModelServer, PredictorConfig, model_server


def arguments(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """The command line of this program."""
    monkeypatch.setattr(sys, "argv", ["program.py", *words])


def test_what_is_not_given_is_kserves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ports, gRPC among them."""
    arguments(monkeypatch)
    server = ModelServer().config([Model("model")]).server

    assert (server.port, server.grpc_port, server.drain_seconds) == (8080, 8081, 30)


def test_flags_are_read_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags of the program itself are left to it."""
    words = ("--http_port=9000", "--grpc_port", "9001", "--mine", "x", "--enable_latency_logging=no")
    arguments(monkeypatch, *words, "--timeout-keep-alive=7")
    made = ModelServer(grpc_port=9002, grace_period=7, host="127.0.0.1").config([Model("model")])

    assert (made.server.port, made.server.grpc_port, made.server.drain_seconds) == (9000, 9002, 7)
    assert made.server.host == "127.0.0.1"
    assert made.logging.access.sample == 0
    assert made.server.timeouts.header_seconds == 7


@pytest.mark.parametrize(("words", "keywords"), [(("--enable_grpc=false",), {}), ((), {"enable_grpc": False})])
def test_grpc_can_be_off(monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], keywords: dict[str, Any]) -> None:
    """By flag and by argument."""
    arguments(monkeypatch, *words)

    assert ModelServer(**keywords).config([Model("model")]).server.grpc_port is None


@pytest.mark.parametrize(
    ("word", "fault"),
    [
        ("--access_log_format=%(h)s", "--access_log_format: is '%(h)s'; remove it"),
        ("--event-loop=asyncio", "--event-loop: is 'asyncio'; must be auto or uvloop"),
        ("--ssl_certfile=a.pem", "--ssl_certfile: needs the other one"),
        ("--ssl_certfile=/absent --ssl_keyfile=/a.pem", "--ssl_certfile: /absent cannot be read: No such file"),
        ("--grpc_max_receive_message_length=9", "--grpc_max_receive_message_length: is 9; set max_body_bytes"),
        ("--configure_logging=false", "--configure_logging: is False; remove it"),
        ("--workers=3", "--workers: is 3; remove it: loaded models belong to one process"),
        ("--log_config_file=/absent", "--log_config_file: is '/absent', which is no config of Python's logging: "),
        ("--http_port=99999", "--http_port: Input should be less than or equal to 65535"),
    ],
)
def test_a_flag_that_cannot_be_honoured_ends_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str, fault: str
) -> None:
    """With its name and what to do, in one line on standard error."""
    arguments(monkeypatch, *word.split())
    with pytest.raises(SystemExit) as ended:
        ModelServer()
    (line,) = capsys.readouterr().err.splitlines()

    assert ended.value.code == 2
    assert f": {fault}" in line


@pytest.mark.parametrize(
    ("keywords", "fault"),
    [
        ({"event_loop": "asyncio"}, "event_loop: is 'asyncio'; must be auto or uvloop"),
        ({"workers": 2}, "workers: is 2; remove it"),
        ({"http_port": 99999}, "server.port: Input should be less"),
    ],
)
def test_an_argument_that_cannot_be_honoured_is_refused(
    monkeypatch: pytest.MonkeyPatch, keywords: dict[str, Any], fault: str
) -> None:
    """By its name, with what to do; the program may catch the error."""
    arguments(monkeypatch)
    with pytest.raises(ConfigError) as refused:
        ModelServer(**keywords)

    assert f"ModelServer: {fault}" in str(refused.value)


def test_the_flags_are_a_parent_of_a_programs_own() -> None:
    """As in KServe's samples."""
    parser = argparse.ArgumentParser(parents=[model_server.parser])
    args = parser.parse_args(["--model_name=iris", "--predictor_use_ssl=yes"])

    assert (args.model_name, args.predictor_use_ssl, args.configure_logging) == ("iris", True, True)


@pytest.mark.parametrize("flag", ["--protocol", "--predictor_protocol"])
def test_the_predictor_comes_from_the_flags(monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    """Its protocol by either name."""
    words = ("--predictor_host=there:8080", flag, "v2", "--predictor_use_ssl=true", "--enable_predictor_health_check")
    arguments(monkeypatch, *words)

    config = ModelServer().predictor_config
    assert config == PredictorConfig("there:8080", "v2", predictor_use_ssl=True, predictor_health_check=True)
    assert config.predictor_base_url == "https://there:8080"


def test_tls_has_a_port_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Unless the program sets one."""
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    arguments(monkeypatch, f"--ssl_certfile={tmp_path}/both.pem", f"--ssl_keyfile={tmp_path}/both.pem")

    assert ModelServer().config([Model("model")]).server.port == 8443
    assert ModelServer(http_port=9000).config([Model("model")]).server.port == 9000


def test_registered_models_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other names than a model's own are aliases."""
    arguments(monkeypatch)
    repository, one, two = ModelRepository(), Model("one"), Model("two")
    repository.update(one)
    repository.update(one, "uno")
    server = ModelServer(registered_models=repository)
    server.register_model(two)

    assert [each.names for each in server.config([]).models] == [("one", "uno"), ("two",)]
    assert server.config([one]).models == server.config([]).models


def test_other_middleware_is_refused() -> None:
    """And options of CORS that cannot be honoured."""

    class CORSMiddleware: ...

    with pytest.raises(TypeError, match="dict is no middleware of this server"):
        model_server.app.add_middleware(dict)
    with pytest.raises(TypeError, match="allow_origin_regex cannot be set here"):
        model_server.app.add_middleware(CORSMiddleware, allow_origin_regex=".*")
