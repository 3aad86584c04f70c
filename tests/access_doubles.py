"""Applications that ask for keys."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any, cast

from doubles import Double, DoubleConfig, DoubleFactory, config
from httpx import ASGITransport, AsyncClient

from appliance.config import Config
from appliance.config.root import MetadataConfig
from appliance.config.security import KeyConfig
from appliance.config.server import ServerConfig
from appliance.core.model import Model, ModelRequest, ModelResponse, Operation, Peers
from appliance.models.manager import ModelManager
from appliance.server import create_app

ALL = "all-all-all-all-all-all"
ONE = "one-one-one-one-one-one"
EYES = "eyes-eyes-eyes-eyes-eyes"
BOSS = "boss-boss-boss-boss-boss"
HAND = "hand-hand-hand-hand-hand"
ONLY = "only-only-only-only-only"


class Keeper(Double):
    """Keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[ModelRequest] = []
        self.may_load.set()

    async def handle(self, call: ModelRequest) -> ModelResponse:
        """As any double."""
        self.calls.append(call)
        return await super().handle(call)


class KeeperConfig(DoubleConfig):
    """Declares one."""

    def build(self, peers: Peers) -> Model:
        return Keeper()


def keys() -> tuple[KeyConfig, ...]:
    """One for everything, one for a model, one that may only look, one for operators, and two more for a model."""
    return (
        KeyConfig(name="all", value=ALL),
        KeyConfig(name="one", sha256=hashlib.sha256(ONE.encode()).hexdigest(), models=("uno",)),
        KeyConfig(name="eyes", value=EYES, operations=()),
        KeyConfig(name="boss", value=BOSS, operations=(Operation.COMPLETION,), admin=True),
        KeyConfig(name="only", value=ONLY, models=("one",)),
        KeyConfig(name="hand", value=HAND, models=("uno",), admin=True),
    )


def closed_config(*api_keys: KeyConfig, **server: Any) -> Config:  # Any: keys of the section
    """Two doubles behind these keys, or those above, published by KServe's gateway too."""
    configs = KeeperConfig(name="one", aliases=("uno",)), KeeperConfig(name="two")
    metadata = MetadataConfig(name="talk", namespace="shop")
    return config(*configs, server=ServerConfig(api_keys=api_keys or keys(), **server), metadata=metadata)


class Closed(AsyncClient):
    """A client without a key of an application in this event loop."""

    def __init__(self, of: Config) -> None:
        self.app = create_app(of, factory=DoubleFactory())
        self.manager: ModelManager = self.app.state.manager
        super().__init__(transport=ASGITransport(cast("Any", self.app)), base_url="http://appliance")

    async def until_ready(self) -> None:
        """Load everything."""
        self.manager.start()
        async with asyncio.timeout(30):
            while not self.manager.is_ready:
                await asyncio.sleep(0.01)


def bearing(key: str) -> dict[str, str]:
    """The header that OpenAI's clients send."""
    return {"Authorization": f"Bearer {key}"}
