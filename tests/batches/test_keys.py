"""Batches of API keys: each has its own, and may do in them what it may do otherwise."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from batches.service import ENDPOINT, EchoConfig, Service, lines, serving

from appliance.config.limits import KeyLimitsConfig
from appliance.config.server import KeyConfig
from appliance.core.model import ModelRequest, ModelResponse, Operation

ALICE, BOB = "alice-alice-alice", "bob-bob-bob-bob-bob"


def _keys(**alice: Any) -> list[KeyConfig]:
    return [KeyConfig(name="alice", value=ALICE, **alice), KeyConfig(name="team/bob", value=BOB)]


async def test_another_key_sees_nothing(tmp_path: Path) -> None:
    """Its files and batches do not exist for others: 404, and not in lists."""
    async with serving(tmp_path / "store", keys=_keys(), key=ALICE) as alice:
        created = await alice.until(await alice.create(lines(1)))
        bob = {"Authorization": f"Bearer {BOB}"}
        paths = [
            ("GET", f"/v1/batches/{created['id']}"),
            ("POST", f"/v1/batches/{created['id']}/cancel"),
            ("GET", f"/v1/files/{created['input_file_id']}"),
            ("GET", f"/v1/files/{created['output_file_id']}/content"),
            ("DELETE", f"/v1/files/{created['output_file_id']}"),
        ]
        statuses = [(await alice.request(*each, headers=bob)).status_code for each in paths]
        body = {"input_file_id": created["input_file_id"], "endpoint": ENDPOINT, "completion_window": "24h"}
        stolen = await alice.post("/v1/batches", json=body, headers=bob)
        lists = [(await alice.get(path, headers=bob)).json()["data"] for path in ("/v1/files", "/v1/batches")]
        without = await alice.get("/v1/files", headers={"Authorization": ""})

    assert statuses == [404] * 5
    assert (stolen.status_code, lists, without.status_code) == (404, [[], []], 401)


async def test_a_key_may_batch_what_it_may_request(tmp_path: Path) -> None:
    """An operation that it has not is 403 at once; a model that it has not is an error of the line."""
    models = EchoConfig(name="one"), EchoConfig(name="two")
    keys = _keys(models=("two",), operations=(Operation.COMPLETION,))
    async with serving(tmp_path / "store", *models, keys=keys, key=ALICE) as alice:
        file = await alice.upload(lines(1))
        body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        operation = await alice.post("/v1/batches", json=body)
        model = await alice.until(await alice.create(lines(1)))

    assert operation.status_code == 403
    assert [error["code"] for error in model["errors"]["data"]] == ["model_not_found"]


async def test_a_key_for_listings_has_no_files(tmp_path: Path) -> None:
    """403 names the key of the config that allows it."""
    async with serving(tmp_path / "store", keys=_keys(operations=()), key=ALICE) as alice:
        answer = await alice.post("/v1/files", files={"file": ("a", b"")})

    assert answer.status_code == 403
    assert "operations" in answer.json()["error"]["message"]


async def test_permissions_hold_while_the_batch_runs(tmp_path: Path) -> None:
    """A permission that is taken away is an error of the lines after that; a removed key ends the batch."""
    async with serving(tmp_path / "store", keys=_keys(), key=ALICE, concurrent=1) as alice:
        manager = alice.manager

        def use(*keys: KeyConfig) -> None:
            manager.apply(
                manager.config.model_copy(
                    update={"server": manager.config.server.model_copy(update={"api_keys": keys})}
                )
            )

        async def answer(request: ModelRequest) -> ModelResponse:
            if b'"2"' in request.body:
                use(*_keys(operations=(Operation.EMBEDDING,)))
            if b'"12"' in request.body:
                use(_keys()[1])
            return ModelResponse(request.body)

        alice.model.answer = answer  # type: ignore[method-assign]  # a double
        restricted = await alice.until(await alice.create(lines(5)))
        errors = await _errors(alice, restricted)
        use(*_keys())
        # Nothing but the id is known once the key is gone.
        removed = await alice.create(lines(8, lambda number: str(number + 10)))
        path = tmp_path / "store" / "alice" / removed["id"] / "object.json"
        async with asyncio.timeout(10):
            while b'"status":"failed"' not in await asyncio.to_thread(path.read_bytes):
                await asyncio.sleep(0.02)
        use(*_keys())
        removed = await alice.until(removed)
        outputs = await alice.results(removed["output_file_id"])

    assert restricted["request_counts"] == {"total": 5, "completed": 3, "failed": 2}
    assert errors == {"line-3": 403, "line-4": 403}
    assert removed["errors"]["data"][0]["code"] == "key_removed"
    assert sorted(outputs) == ["line-0", "line-1", "line-2"]


async def _errors(service: Service, batch: dict[str, str]) -> dict[str, int]:
    found = await service.results(batch["error_file_id"])
    return {name: line["response"]["status_code"] for name, line in found.items()}


async def test_lines_are_recorded_as_those_of_their_key(tmp_path: Path) -> None:
    """Rate limits count their tokens, and not their number."""
    # Few a minute, so that what comes back meanwhile is little beside the hundred that the lines take.
    keys = _keys(limits=KeyLimitsConfig(requests_per_minute=10, tokens_per_minute=200))
    async with serving(tmp_path / "store", keys=keys, key=ALICE) as alice:
        batch = await alice.until(await alice.create(lines(12)))
        left = (await alice.post(ENDPOINT, json={"model": "one", "prompt": "x"})).headers

    assert batch["request_counts"]["completed"] == 12
    assert left["x-ratelimit-remaining-requests"] == "9"
    assert int(left["x-ratelimit-remaining-tokens"]) < 150
