"""One real engine for the whole run; tests that end a server start their own."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from distributions import Distributions
from faultproxy import FaultProxy
from hypothesis import settings
from ruamel.yaml import YAML
from server_process import ServerProcess, free_port
from upstreams import Upstream

from appliance.config import load
from appliance.config.storage import GlobalStorageConfig
from appliance.models.factory import ModelFactory

EXAMPLES = Path(__file__).parent.parent / "examples"

settings.register_profile("default", max_examples=25, deadline=None)
settings.register_profile("long", max_examples=500, deadline=None)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options for the number format of the real model, and to write golden files."""
    parser.addoption("--golden", action="store_true", help="write the golden files of tests/contract anew")
    parser.addoption("--dtype", choices=["float32", "bfloat16"], help="number format of the chat example in tests")


# Before any test module is imported.
_FIRST = dict(os.environ)

# Until all are: what they make stays, and to look through it again and again takes a fifth of the time.
gc.disable()


def pytest_configure(config: pytest.Config) -> None:
    """The hooks of a conftest are not called for fixtures of a session."""
    # A shell lets what it starts in the background ignore Ctrl-C, which the processes of tests would inherit.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(_SameEnvironment())


class _SameEnvironment:
    """Takes back what imports write into the environment, as vLLM's do: servers would inherit it, and start cold.

    It also ends the pause of the garbage collector that lasts while test modules are imported.
    """

    def pytest_collection_finish(self) -> None:
        _set_environment(_FIRST)
        gc.freeze()
        gc.enable()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Generator[None, object, object]:
        before = dict(os.environ)
        try:
            return (yield)
        finally:
            if fixturedef.scope != "function":
                _set_environment(before)


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Take back what a test writes into the environment."""
    before = dict(os.environ)
    yield
    _set_environment(before)


def _set_environment(variables: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """The wheel and the source distribution of this checkout."""
    return Distributions.build(tmp_path_factory.mktemp("distributions"), project_url="https://git.example.com/a/b.git")


@pytest.fixture(scope="session")
def chat_file(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded default: SmolLM2 from a wheel, in its own number format or that of `--dtype`."""
    example = EXAMPLES / "chat.yaml"
    dtype = pytestconfig.getoption("--dtype")
    if dtype is None:
        return example
    config = YAML(typ="safe").load(example.read_text())
    config["models"][0]["engine"]["dtype"] = dtype
    file = tmp_path_factory.mktemp("chat") / "chat.yaml"
    YAML(typ="safe").dump(config, file)
    return file


@pytest.fixture(scope="session")
def grpc_port() -> int:
    """Where `adapted_server` answers gRPC."""
    return free_port()


@pytest.fixture(scope="session")
def adapted_server(
    chat_file: Path, grpc_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """SmolLM2, and beside it an adapter that only uses its completions and its tokenizer's files."""
    (config,) = load(chat_file).config.models
    folder = ModelFactory().materialize(config, GlobalStorageConfig(), lambda *_: None)["model"]
    file = tmp_path_factory.mktemp("adapted") / "config.yaml"
    protocol = f"{{kind: completions, tokenizer: {{uri: {folder}}}}}"
    file.write_text(
        f"models:\n"
        f"  - {{name: adapted, class: adapter, target: smollm2, protocol: {protocol}}}\n"
        f"  - {{name: smollm2, class: generative, storage: {{uri: {folder}}}, engine: {{max_model_len: 1024}}}}\n"
        f"server: {{grpc_port: {grpc_port}}}\n"
    )
    served = ServerProcess(file, file.with_name("server.log")).wait_until_ready()
    yield served
    assert served.stop() == 0, served.log_tail()


@pytest.fixture
def serve(tmp_path: Path, chat_file: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers of the test's own, and ends whatever is left of them."""
    servers: list[ServerProcess] = []

    def start(
        *overrides: str,
        file: Path = chat_file,
        prefix: Sequence[str] = (),
        host: str = "127.0.0.1",
        is_cold: bool = False,
    ) -> ServerProcess:
        log = tmp_path / f"server-{len(servers)}.log"
        servers.append(ServerProcess(file, log, *overrides, prefix=prefix, host=host, is_cold=is_cold))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait(30)


@pytest.fixture
def offspring() -> Callable[[], list[psutil.Process]]:
    """
    The processes that this test started, and theirs, as far as they still run; the shared server is not among them.
    """
    me = psutil.Process()
    before = {*me.children(recursive=True)}
    return lambda: [process for process in me.children(recursive=True) if process not in before]


@pytest.fixture
def upstreams() -> Iterator[Callable[[], Upstream]]:
    """Starts well-behaved upstreams, until the test tells them otherwise."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Upstream())


@pytest.fixture
def upstream(upstreams: Callable[[], Upstream]) -> Upstream:
    """One upstream."""
    return upstreams()


@pytest.fixture
def fault_proxies() -> Iterator[Callable[[int], FaultProxy]]:
    """Puts fault proxies before ports."""
    with ExitStack() as stack:
        yield lambda port: stack.enter_context(FaultProxy(port))
