"""An application with batches in this event loop, and a client of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from doubles import Double, DoubleConfig, DoubleFactory, config
from httpx import ASGITransport, AsyncClient

from appliance.config.batches import BatchesConfig
from appliance.config.server import KeyConfig, ServerConfig
from appliance.core.model import Model, ModelRequest, ModelResponse, Peers
from appliance.models.manager import ModelManager
from appliance.server import create_app

ENDPOINT = "/v1/completions"
FINAL = {"completed", "failed", "expired", "cancelled"}


class Echo(Double):
    """Echoes; `answer` may be replaced, and `seen` has the prompts in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.may_load.set()
        self.seen: list[str] = []
        self.running = 0

    async def answer(self, request: ModelRequest) -> ModelResponse:
        """Return the response."""
        return ModelResponse(request.body)

    async def handle(self, call: ModelRequest) -> ModelResponse:
        """Note the request, and wait for `may_finish` if it says so."""
        if call.body != b'{"prompt": "proof"}':
            self.seen.append(str(json.loads(call.body).get("prompt")))
        self.running += 1
        try:
            if b"wait" in call.body:
                await self.may_finish.wait()
            return await self.answer(call)
        finally:
            self.running -= 1


class EchoConfig(DoubleConfig):
    """The config of `Echo`."""

    def build(self, peers: Peers) -> Model:
        return Echo()


class Service(AsyncClient):
    """The client; `key` is sent with each request."""

    def __init__(self, app: Any, key: str | None) -> None:
        self.manager: ModelManager = app.state.manager
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        super().__init__(transport=ASGITransport(cast("Any", app)), base_url="http://appliance", headers=headers)

    @property
    def model(self) -> Echo:
        """The first model."""
        return cast("Echo", self.manager.statuses[0].model)

    async def upload(self, content: str | bytes, **fields: str) -> dict[str, Any]:
        """Upload a file, and return it."""
        data = content.encode() if isinstance(content, str) else content
        answer = await self.post("/v1/files", files={"file": ("in.jsonl", data)}, data={"purpose": "batch", **fields})
        assert answer.status_code == 200, answer.text
        return cast("dict[str, Any]", answer.json())

    async def create(self, content: str | bytes, endpoint: str = ENDPOINT, **fields: Any) -> dict[str, Any]:
        """Upload a file, create a batch of it, and return that."""
        file = await self.upload(content)
        body = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h", **fields}
        answer = await self.post("/v1/batches", json=body)
        assert answer.status_code == 200, answer.text
        return cast("dict[str, Any]", answer.json())

    async def batch(self, batch_id: str) -> dict[str, Any]:
        """Return a batch."""
        answer = await self.get(f"/v1/batches/{batch_id}")
        assert answer.status_code == 200, answer.text
        return cast("dict[str, Any]", answer.json())

    async def until(self, batch: Mapping[str, Any], *statuses: str) -> dict[str, Any]:
        """Wait until a batch has one of these statuses, by default until it has ended."""
        async with asyncio.timeout(30):
            while (now := await self.batch(batch["id"]))["status"] not in (statuses or FINAL):
                await asyncio.sleep(0.02)
        return now

    async def results(self, file_id: str | None) -> dict[str, Any]:
        """Return the lines of a file of results by their ids."""
        if file_id is None:
            return {}
        answer = await self.get(f"/v1/files/{file_id}/content")
        assert answer.status_code == 200
        lines = [json.loads(line) for line in answer.text.splitlines()]
        found = {line["custom_id"]: line for line in lines}
        assert len(found) == len(lines), "a line is there twice"
        return found


@asynccontextmanager
async def serving(
    directory: Path,
    *models: DoubleConfig,
    keys: Sequence[KeyConfig] | None = None,
    key: str | None = None,
    **batches: Any,
) -> AsyncGenerator[Service]:
    """Serve models, by default one `Echo`, with batches in a directory; other arguments are keys of `batches`."""
    of = config(
        *(models or (EchoConfig(name="one"),)),
        batches=BatchesConfig(directory=directory, **batches),
        server=ServerConfig(api_keys=None if keys is None else tuple(keys)),
    )
    app = create_app(of, factory=DoubleFactory())
    async with app.lifespan(), Service(app, key) as service:
        async with asyncio.timeout(10):
            while not all(isinstance(each.model, Echo) and each.rule.can_answer for each in service.manager.statuses):
                await asyncio.sleep(0.01)
        yield service


def lines(count: int, prompt: Callable[[int], str] = str, **changes: Any) -> str:
    """Return an input file with so many requests."""
    return "".join(
        json.dumps(
            {
                "custom_id": f"line-{number}",
                "method": "POST",
                "url": ENDPOINT,
                "body": {"model": "one", "prompt": prompt(number)},
                **changes,
            }
        )
        + "\n"
        for number in range(count)
    )


def replace_in(path: Path, old: str, new: str) -> None:
    """Replace a text in a file."""
    path.write_text(path.read_text().replace(old, new))
