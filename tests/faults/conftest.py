"""One server without an engine for the faults that need none, and the table at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.ledger import Ledger
from server_process import ServerProcess
from services import install
from upstreams import Answer, Asked, Upstream, error

_LEDGER = pytest.StashKey[Ledger]()


def pytest_configure(config: pytest.Config) -> None:
    """The table is there before its rows."""
    config.stash[_LEDGER] = Ledger()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, where there is anything in it."""
    ledger = config.stash[_LEDGER]
    if ledger.rows:
        terminalreporter.section("faults")
        for line in ledger.table():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def ledger(pytestconfig: pytest.Config) -> Ledger:
    """The rows of this run."""
    return pytestconfig.stash[_LEDGER]


class Strict(Upstream):
    """Refuses what it cannot read, as servers do that check what they are sent."""

    def _reaction(self, asked: Asked) -> Answer:
        try:
            return super()._reaction(asked)
        except (LookupError, TypeError, ValueError, AttributeError):
            return error(400, "this is none of its requests")


@pytest.fixture(scope="session")
def scripted() -> Iterator[Upstream]:
    """What the models of models.yaml ask that compute elsewhere."""
    with Strict() as upstream:
        install(upstream)
        yield upstream


@pytest.fixture(scope="session")
def sound(scripted: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """``models.yaml``, served and ready, with a listener for probes."""
    log = tmp_path_factory.mktemp("faults") / "server.log"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("UPSTREAM", scripted.origin)
        served = ServerProcess(Path(__file__).with_name("models.yaml"), log, "server.drain_seconds=1").wait_until_ready(
            60
        )
    yield served
    assert served.stop() == 0, served.log_tail()


@pytest.fixture(scope="session")
def answers() -> Callable[[ServerProcess], bool]:
    """Whether the talker says what it hears, over a connection of its own."""
    return lambda server: talks(server)


def talks(server: ServerProcess, model: str = "talker") -> bool:
    """A right answer to a question."""
    body = {"model": model, "messages": [{"role": "user", "content": "still here"}], "max_tokens": 8}
    status, answer = server.post("/v1/chat/completions", body)
    return status == 200 and (model != "talker" or answer["choices"][0]["message"]["content"] == "still here")
