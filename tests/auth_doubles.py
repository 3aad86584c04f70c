"""Applications with API keys."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any, cast

from doubles import Double, DoubleConfig, DoubleFactory, config
from httpx import ASGITransport, AsyncClient

from appliance.config import Config
from appliance.config.root import MetadataConfig
from appliance.config.server import KeyConfig, ServerConfig
from appliance.core.model import Model, ModelRequest, ModelResponse, Operation, Peers
from appliance.models.manager import ModelManager
from appliance.server import create_app

FULL_KEY = "all-all-all-all-all-all"
ALIAS_KEY = "one-one-one-one-one-one"
LISTING_KEY = "eyes-eyes-eyes-eyes-eyes"
ADMIN_KEY = "boss-boss-boss-boss-boss"
MODEL_ADMIN_KEY = "hand-hand-hand-hand-hand"
MODEL_KEY = "only-only-only-only-only"


class RecordingDouble(Double):
    """Records its requests."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[ModelRequest] = []
        self.may_load.set()

    async def handle(self, call: ModelRequest) -> ModelResponse:
        """Record the request."""
        self.calls.append(call)
        return await super().handle(call)


class RecordingDoubleConfig(DoubleConfig):
    """The config of a `RecordingDouble`."""

    def build(self, peers: Peers) -> Model:
        return RecordingDouble()


def keys() -> tuple[KeyConfig, ...]:
    """Return keys for everything, for one model, for listings only, for operators, and two more for one model."""
    return (
        KeyConfig(name="all", value=FULL_KEY),
        KeyConfig(name="one", sha256=hashlib.sha256(ALIAS_KEY.encode()).hexdigest(), models=("uno",)),
        KeyConfig(name="eyes", value=LISTING_KEY, operations=()),
        KeyConfig(name="boss", value=ADMIN_KEY, operations=(Operation.COMPLETION,), admin=True),
        KeyConfig(name="only", value=MODEL_KEY, models=("one",)),
        KeyConfig(name="hand", value=MODEL_ADMIN_KEY, models=("uno",), admin=True),
    )


def config_with_keys(*api_keys: KeyConfig, **server: Any) -> Config:  # Any: keys of the section
    """Return the config of two doubles with these keys, by default those of `keys`, and KServe's metadata."""
    configs = RecordingDoubleConfig(name="one", aliases=("uno",)), RecordingDoubleConfig(name="two")
    metadata = MetadataConfig(name="talk", namespace="shop")
    return config(*configs, server=ServerConfig(api_keys=api_keys or keys(), **server), metadata=metadata)


class AppClient(AsyncClient):
    """A client without a key of an application in this event loop."""

    def __init__(self, of: Config) -> None:
        self.app = create_app(of, factory=DoubleFactory())
        self.manager: ModelManager = self.app.state.manager
        super().__init__(transport=ASGITransport(cast("Any", self.app)), base_url="http://appliance")

    async def wait_until_ready(self) -> None:
        """Load all models."""
        self.manager.start()
        async with asyncio.timeout(30):
            while not self.manager.is_ready:
                await asyncio.sleep(0.01)


def bearer_header(key: str) -> dict[str, str]:
    """Return the header that OpenAI's clients send."""
    return {"Authorization": f"Bearer {key}"}
