"""One appliance with an adapter of each kind, before one scripted server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from server_process import ServerProcess, wait_until
from services import install
from upstreams import Upstream


@pytest.fixture(scope="session")
def _scripted() -> Iterator[Upstream]:
    with Upstream() as upstream:
        install(upstream)
        yield upstream


@pytest.fixture(scope="session")
def adapters(_scripted: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """``adapters.yaml``, served and ready."""
    log = tmp_path_factory.mktemp("adapters") / "server.log"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("UPSTREAM", _scripted.origin)
        served = ServerProcess(Path(__file__).with_name("adapters.yaml"), log)
    try:
        wait_until(lambda: served.get("/readyz")[0] == 200, 120, served.log_tail)
        yield served
    finally:
        code = served.stop()
    assert code == 0, served.log_tail()


@pytest.fixture
def scripted(adapters: ServerProcess, _scripted: Upstream) -> Upstream:
    """The server that the adapters ask, well-behaved and with nothing remembered."""
    install(_scripted)
    return _scripted


@pytest.fixture
def client(adapters: ServerProcess) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=f"{adapters.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client
