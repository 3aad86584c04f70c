"""ModelServer: what it refuses, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import pytest

from appliance import ModelServer
from appliance.core.errors import ApplianceError, ConfigError
from appliance.openai import OpenAIGenerativeModel


class Talker(OpenAIGenerativeModel):
    """A model."""

    async def create_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any: ...


@pytest.mark.parametrize(
    ("keywords", "fault"),
    [
        ({"http_port": 0}, "server.port: Input should be greater than or equal to 1"),
        ({"hots": "::"}, 'server.hots: unknown key; did you mean "host"?'),
        ({"logging": {"level": "loud"}}, "logging.level: Input should be"),
    ],
)
def test_keywords_are_checked_like_the_file(keywords: dict[str, Any], fault: str) -> None:
    """A wrong one is named when the server is made."""
    with pytest.raises(ConfigError) as refused:
        ModelServer(**keywords)

    assert f"ModelServer: {fault}" in str(refused.value)


@pytest.mark.parametrize(
    ("models", "fault"),
    [
        ([], "models: is empty; must have one model or more"),
        ([Talker("a"), Talker("a")], "models[1].name: is 'a', which is taken"),
        ([Talker("a b")], "models[0].name: is 'a b'"),
        ([OpenAIGenerativeModel], "must be an object of a subclass of appliance.openai's or Model, not the class"),
        (["a"], "models[0]: is a str; must be an object of a subclass"),
    ],
)
def test_error_lists_models_that_cannot_be_served(models: list[Any], fault: str) -> None:
    """Before anything starts."""
    with pytest.raises(ConfigError) as refused:
        ModelServer().start(models)

    assert fault in str(refused.value)


def test_loaded_models_have_one_process() -> None:
    """Several workers would each have a copy of what one has loaded."""
    with pytest.raises(ConfigError, match=r"server\.workers: is 4, and loaded models belong to one process; must be 1"):
        ModelServer(workers=4).start([Talker("a")])


def test_other_keywords_are_the_servers() -> None:
    """Whatever the file's section has."""
    config = ModelServer(9000, host="127.0.0.1", probe_port=9001).config([Talker("a")])

    assert (config.server.port, config.server.host, config.server.probe_port) == (9000, "127.0.0.1", 9001)


async def test_start_needs_the_main_thread_without_a_loop() -> None:
    """Signals go there alone."""
    model = Talker("a")
    faults: list[str] = []

    def start() -> None:
        try:
            ModelServer().start([model])
        except ApplianceError as error:
            faults.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    start()

    assert "in the main thread alone" in faults[0]
    assert "an event loop of its own" in faults[1]


def test_a_model_needs_a_name() -> None:
    """A class that forgets its parent's constructor argument hears of it at once."""
    with pytest.raises(ApplianceError, match="Talker: its name is ''"):
        Talker("")


def test_importing_is_light_and_leaves_the_arguments_alone() -> None:
    """A program's own options are its own, and what it does not use is not imported."""
    code = (
        "import sys; sys.argv += ['--http_port', 'x']; before = list(sys.argv); import appliance; "
        "assert not {'pydantic', 'litestar', 'numpy', 'msgspec'} & set(sys.modules), 'heavy'; "
        "assert 'ModelServer' in dir(appliance); import appliance.openai.types; "
        "assert not {'litestar', 'granian', 'numpy', 'vllm', 'aiohttp'} & set(sys.modules), 'heavy types'; "
        "appliance.ModelServer; assert sys.argv == before; assert not hasattr(appliance, 'Nothing')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
