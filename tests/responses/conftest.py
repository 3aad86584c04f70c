"""A server that stores responses in files, with two workers, before a scripted upstream."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI
from server_process import ServerProcess
from stored_server import CONFIG, KEYS, client_of
from upstreams import Upstream


@pytest.fixture(scope="package")
def shared_upstream() -> Iterator[Upstream]:
    """The upstream of `server`, which says back the last text."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(shared_upstream: Upstream) -> Upstream:
    """The same, well-behaved again."""
    shared_upstream.reset()
    return shared_upstream


@pytest.fixture(scope="package")
def server(shared_upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with API keys and two workers."""
    folder = tmp_path_factory.mktemp("stored")
    batches = f"batches: {{directory: {folder}/batches, start: always}}"
    more = f"responses: {{store: file, directory: {folder}/responses}}\n{batches}\n{KEYS}"
    file = folder / "stored.yaml"
    file.write_text(CONFIG.format(url=shared_upstream.url, more=more))
    served = ServerProcess(file, folder / "log").wait_until_ready()
    yield served
    assert served.stop() == 0, served.log_tail()


@pytest.fixture
def client(server: ServerProcess, upstream: Upstream) -> Iterator[OpenAI]:
    """OpenAI's client with Alice's key; its upstream is well-behaved."""
    with client_of(server) as client:
        yield client
