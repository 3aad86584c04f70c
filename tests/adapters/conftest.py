"""One appliance with an adapter of each kind, before one scripted server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from served import Served, until
from services import install
from upstreams import Upstream


@pytest.fixture(scope="session")
def _scripted() -> Iterator[Upstream]:
    with Upstream() as upstream:
        install(upstream)
        yield upstream


@pytest.fixture(scope="session")
def adapters(_scripted: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """``adapters.yaml``, served and ready."""
    log = tmp_path_factory.mktemp("adapters") / "server.log"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("UPSTREAM", _scripted.origin)
        served = Served(Path(__file__).with_name("adapters.yaml"), log)
    try:
        until(lambda: served.get("/readyz")[0] == 200, 120, served.tail)
        yield served
    finally:
        code = served.end()
    assert code == 0, served.tail()


@pytest.fixture
def scripted(adapters: Served, _scripted: Upstream) -> Upstream:
    """The server that the adapters ask, well-behaved and with nothing remembered."""
    install(_scripted)
    return _scripted


@pytest.fixture
def client(adapters: Served) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=f"{adapters.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client
