"""Variables that Kubernetes sets for Services: no setting of ours, and none of vLLM's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from server_process import ServerProcess, wait_until

from appliance.config import load
from appliance.config.layout import LayoutConfig
from appliance.core.service_links import service_links
from appliance.engines.vllm.env import set_environment


def _of_service(name: str) -> dict[str, str]:
    """What a container gets for a Service of this name with one port, `http`."""
    address = "10.0.0.1"
    return {
        f"{name}_SERVICE_HOST": address,
        f"{name}_SERVICE_PORT": "8000",
        f"{name}_SERVICE_PORT_HTTP": "8000",
        f"{name}_PORT": f"tcp://{address}:8000",
        f"{name}_PORT_8000_TCP": f"tcp://{address}:8000",
        f"{name}_PORT_8000_TCP_PROTO": "tcp",
        f"{name}_PORT_8000_TCP_PORT": "8000",
        f"{name}_PORT_8000_TCP_ADDR": address,
    }


VLLM, MASTER, OURS = _of_service("VLLM"), _of_service("VLLM_DP_MASTER"), _of_service("APPLIANCE__SERVER")


def test_all_variables_of_a_service_are_found() -> None:
    """And no others that begin as they do."""
    others = {"VLLM_LOGGING_LEVEL": "INFO", "VLLM_HOST_IP": "10.0.0.2", "REDIS_PORT": "tcp://10.0.0.3:6379"}

    assert service_links({**VLLM, **MASTER, **others}, "VLLM_") == frozenset(VLLM) | frozenset(MASTER)


def test_a_port_that_somebody_set_is_no_services() -> None:
    """It stays, with whatever comes with it."""
    assert service_links({"VLLM_PORT": "8000", "VLLM_SERVICE_HOST": "10.0.0.1"}, "VLLM_") == frozenset()


def test_the_config_takes_none_of_them_for_a_setting(tmp_path: Path) -> None:
    """They would be unknown settings; those beside them are read, and a reference finds all of them."""
    file = tmp_path / "config.yaml"
    file.write_text(
        "models: [{name: one, class: proxy, upstreams: [{url: 'http://${env:VLLM_SERVICE_HOST}:${env:VLLM_SERVICE_PORT}/v1'}]}]"
    )
    config = load(file, environ={**OURS, **VLLM, "APPLIANCE__SERVER__PORT": "9000"}).config

    assert config.server.port == 9000


def test_vllm_takes_none_of_them_for_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither here nor in its processes, which get the same environment; a port that somebody set stays."""
    for name, value in {**VLLM, **MASTER, "VLLM_NIXL_SIDE_CHANNEL_PORT": "5601"}.items():
        monkeypatch.setenv(name, value)
    set_environment(LayoutConfig())
    from vllm import envs

    assert envs.VLLM_PORT is None
    assert envs.VLLM_DP_MASTER_PORT == 0
    assert envs.VLLM_NIXL_SIDE_CHANNEL_PORT == 5601
    assert os.environ["VLLM_SERVICE_HOST"] == "10.0.0.1"


def test_a_server_says_what_it_ignores(
    serve: Callable[..., ServerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, with the remedy."""
    for name, value in {**VLLM, **_of_service("APPLIANCE")}.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "config.yaml"
    file.write_text("models: [{name: one, class: proxy, upstreams: [{url: 'http://127.0.0.1:9/v1'}]}]")
    server = serve(file=file)
    wait_until(lambda: server.get("/livez")[0] == 200, 60, server.log_tail)

    (event,) = [each for each in server.events() if each["event"] == "environment.ignored"]
    assert {"VLLM_PORT", "VLLM_SERVICE_HOST", "APPLIANCE_PORT"} <= set(event["names"])
    assert "enableServiceLinks: false" in event["reason"]
