"""Batches over doubles: from the upload of a file to the files of results."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from batches.service import ENDPOINT, EchoConfig, Service, lines, replace_in, serving
from structlog.testing import capture_logs

from appliance.core.errors import EngineDeadError, RateLimitedError, RequestError
from appliance.core.model import ModelRequest, ModelResponse


async def test_every_line_has_one_result(tmp_path: Path) -> None:
    """Responses are in the output file, errors of clients in the other one, and the counts say so."""
    content = lines(20, lambda number: "wrong" if number == 7 else str(number))
    async with serving(tmp_path / "store") as service:

        async def answer(request: ModelRequest) -> ModelResponse:
            if b"wrong" in request.body:
                raise RequestError("the prompt is wrong", param="prompt")
            return ModelResponse(request.body.replace(b",", b",\n"))

        service.model.answer = answer  # type: ignore[method-assign]  # a double
        batch = await service.until(await service.create(content, metadata={"night": "1"}))
        outputs = await service.results(batch["output_file_id"])
        errors = await service.results(batch["error_file_id"])

    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 20, "completed": 19, "failed": 1}
    assert batch["metadata"] == {"night": "1"}
    assert batch["in_progress_at"] <= batch["finalizing_at"] <= batch["completed_at"]
    assert outputs.keys() | errors.keys() == {f"line-{number}" for number in range(20)}
    assert outputs["line-3"]["response"]["body"] == {"model": "one", "prompt": "3"}
    assert (outputs["line-3"]["response"]["status_code"], outputs["line-3"]["error"]) == (200, None)
    assert errors["line-7"]["response"]["status_code"] == 400
    assert errors["line-7"]["response"]["body"]["error"]["param"] == "prompt"


async def test_an_invalid_file_fails_with_all_its_errors(tmp_path: Path) -> None:
    """Each error has the number of its line, and no line is run."""
    good = json.loads(lines(1))
    wrong = [
        {**good, "custom_id": "line-0"},
        {**good, "custom_id": "a", "url": "/v1/chat/completions"},
        {**good, "custom_id": "b", "url": "/v1/nothing"},
        {**good, "custom_id": "c", "method": "GET"},
        {**good, "custom_id": "d", "body": {"model": "unknown"}},
        {**good, "custom_id": "e", "body": {"model": "one", "stream": True}},
        {**good, "custom_id": "f", "body": [1]},
        {**good, "custom_id": ""},
        {"custom_id": "g"},
    ]
    text = "\n\n".join([json.dumps(good), *map(json.dumps, wrong), "{", '{"a":' + "[" * 1000])
    async with serving(tmp_path / "store") as service:
        batch = await service.until(await service.create(text))

    errors = batch["errors"]["data"]
    assert batch["status"] == "failed"
    assert [error["code"] for error in errors] == [
        "duplicate_custom_id",
        "mismatched_endpoint",
        "invalid_url",
        "invalid_method",
        "model_not_found",
        "invalid_request",
        "invalid_request",
        "invalid_custom_id",
        "invalid_request",
        "invalid_json_line",
        "invalid_json_line",
    ]
    assert [error["line"] for error in errors] == list(range(3, 25, 2))
    assert service.model.seen == []


@pytest.mark.parametrize(
    ("content", "settings", "code"),
    [("", {}, "empty_file"), (lines(5), {"max_requests": 4}, "too_many_requests")],
)
async def test_a_file_of_the_wrong_size_fails(
    tmp_path: Path, content: str, settings: dict[str, Any], code: str
) -> None:
    """A batch has one request at least, and as many as the config allows."""
    async with serving(tmp_path / "store", **settings) as service:
        batch = await service.until(await service.create(content))

    assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", code)


async def test_a_line_that_is_too_long_is_an_error(tmp_path: Path) -> None:
    """It is as large as a body may be, and the lines after it are read."""
    long = lines(1, lambda _: "x" * 40_000_000)
    async with serving(tmp_path / "store") as service:
        batch = await service.until(await service.create(long + "{\n"))

    assert [(each["code"], each["line"]) for each in batch["errors"]["data"]] == [
        ("line_too_long", 1),
        ("invalid_json_line", 2),
    ]


async def test_a_line_is_tried_again_after_what_passes(tmp_path: Path) -> None:
    """An overloaded model, a restart and a passing failure are not the fault of a line."""
    passing = RateLimitedError("too many", retry_after=0), EngineDeadError("the engine died"), RuntimeError("a bug")
    faults = {str(number): [fault, fault] for number, fault in enumerate(passing)}
    async with serving(tmp_path / "store") as service:

        async def answer(request: ModelRequest) -> ModelResponse:
            if left := faults[json.loads(request.body)["prompt"]]:
                raise left.pop()
            return ModelResponse(request.body)

        service.model.answer = answer  # type: ignore[method-assign]  # a double
        batch = await service.until(await service.create(lines(3)))

    assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert sorted(service.model.seen) == ["0"] * 3 + ["1"] * 3 + ["2"] * 3


async def test_a_failure_that_stays_is_the_result_of_its_line(tmp_path: Path) -> None:
    """An upstream that is broken for one request does not stop the others."""
    async with serving(tmp_path / "store") as service:

        async def answer(request: ModelRequest) -> ModelResponse:
            return ModelResponse(b"oops", 502 if b'"0"' in request.body else 200, "text/plain")

        service.model.answer = answer  # type: ignore[method-assign]  # a double
        batch = await service.until(await service.create(lines(2)))
        errors = await service.results(batch["error_file_id"])

    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert errors["line-0"]["response"] == {**errors["line-0"]["response"], "status_code": 502, "body": "oops"}


async def test_a_batch_leaves_room_for_others(tmp_path: Path) -> None:
    """So many of its requests run at once, and an interactive request is answered beside them."""
    model = EchoConfig(name="one", limits={"concurrent": 4})
    async with serving(tmp_path / "store", model, concurrent=8, start="always") as service:
        batch = await service.create(lines(10, lambda _: "wait"))
        async with asyncio.timeout(10):
            while service.model.running < 2:
                await asyncio.sleep(0.01)
        answer = await service.post(ENDPOINT, json={"model": "one", "prompt": "now"})
        running = service.model.running
        service.model.may_finish.set()
        batch = await service.until(batch)

    assert answer.status_code == 200
    assert running == 2
    assert batch["request_counts"]["completed"] == 10


async def test_a_batch_waits_for_a_pause_between_others(tmp_path: Path) -> None:
    """No line starts right after an interactive request; all are run once none comes."""
    async with serving(tmp_path / "store") as service:
        for _ in range(3):
            await service.post(ENDPOINT, json={"model": "one", "prompt": "now"})
            await asyncio.sleep(0.05)
        created = await service.create(lines(3))
        await service.until(created, "in_progress")
        for _ in range(10):
            await service.post(ENDPOINT, json={"model": "one", "prompt": "now"})
            await asyncio.sleep(0.02)
        seen = list(service.model.seen)
        batch = await service.until(created)

    assert seen == ["now"] * 13
    assert batch["request_counts"]["completed"] == 3


async def test_a_line_is_interrupted_for_a_request(tmp_path: Path) -> None:
    """It has no result from that, even if the model has an error of its own for it, and is run again."""
    async with serving(tmp_path / "store") as service:

        async def answer(request: ModelRequest) -> ModelResponse:
            if b"line" in request.body:
                try:
                    await service.model.may_finish.wait()
                except asyncio.CancelledError:
                    raise RequestError("cancelled", status=500) from None
            return ModelResponse(request.body)

        service.model.answer = answer  # type: ignore[method-assign]  # a double
        created = await service.create(lines(1, lambda _: "line"))
        async with asyncio.timeout(10):
            while not service.model.running:
                await asyncio.sleep(0.01)
        for _ in range(2):
            await service.post(ENDPOINT, json={"model": "one", "prompt": "now"})
        service.model.may_finish.set()
        batch = await service.until(created)

    assert service.model.seen == ["line", "now", "now", "line"]
    assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}


async def _create_half_answered(service: Service, count: int, answered: int) -> dict[str, Any]:
    """Return a batch of `count` lines when the first of them are answered; the others wait."""
    created = await service.create(lines(count, lambda number: "wait" if number >= answered else str(number)))
    async with asyncio.timeout(10):
        while (await service.batch(created["id"]))["request_counts"]["completed"] < answered:
            await asyncio.sleep(0.02)
    return created


async def test_a_cancelled_batch_keeps_its_results(tmp_path: Path) -> None:
    """Its requests are abandoned, and what was answered before can be downloaded."""
    async with serving(tmp_path / "store") as service:
        created = await _create_half_answered(service, 20, 4)
        cancelling = (await service.post(f"/v1/batches/{created['id']}/cancel")).json()
        batch = await service.until(created)
        outputs = await service.results(batch["output_file_id"])
        again = await service.post(f"/v1/batches/{created['id']}/cancel")

    assert cancelling["status"] == "cancelling"
    assert batch["status"] == "cancelled"
    assert batch["cancelling_at"] <= batch["cancelled_at"]
    assert sorted(outputs) == [f"line-{number}" for number in range(4)]
    assert service.model.running == 0
    assert again.status_code == 409


async def test_the_rest_of_an_expired_batch_is_in_the_file_of_errors(tmp_path: Path) -> None:
    """Each line that was not run says that the window is over."""
    async with serving(tmp_path / "store") as service:
        created = await service.create(lines(6, lambda number: "wait" if number else "0"), completion_window="1h")
        running = await service.until(created, "in_progress")
        async with asyncio.timeout(10):
            while service.model.running < 4:
                await asyncio.sleep(0.02)
    # The window ends while the server is stopped.
    replace_in(tmp_path / "store" / "_" / running["id"] / "object.json", str(running["expires_at"]), "1700000000")
    async with serving(tmp_path / "store") as service:
        batch = await service.until(created)
        outputs = await service.results(batch["output_file_id"])
        errors = await service.results(batch["error_file_id"])

    assert batch["status"] == "expired"
    assert (sorted(outputs), len(errors)) == (["line-0"], 5)
    assert {each["error"]["code"] for each in errors.values()} == {"batch_expired"}
    assert errors["line-1"]["response"] is None


async def test_a_batch_outlives_a_restart_and_its_input_file(tmp_path: Path) -> None:
    """What was answered is not run again; what was running is; the file may be deleted meanwhile."""
    async with serving(tmp_path / "store") as service:
        created = await _create_half_answered(service, 10, 6)
        deleted = await service.delete(f"/v1/files/{created['input_file_id']}")
    async with serving(tmp_path / "store") as service:
        service.model.may_finish.set()
        batch = await service.until(created)
        outputs = await service.results(batch["output_file_id"])

    assert deleted.json()["deleted"]
    assert batch["status"] == "completed"
    assert len(outputs) == 10
    assert service.model.seen == ["wait"] * 4


async def test_draining_does_not_wait_for_batches(tmp_path: Path) -> None:
    """Their requests are abandoned at once, and run at the next start."""
    async with serving(tmp_path / "store") as service:
        await service.create(lines(10, lambda _: "wait"))
        async with asyncio.timeout(10):
            while not service.model.running:
                await asyncio.sleep(0.01)
        # Far less than the drain's limit.
        async with asyncio.timeout(10):
            await service.manager.drain(60)

        assert service.model.running == 0


async def test_a_damaged_batch_fails_once_with_the_results_that_it_has(tmp_path: Path) -> None:
    """Its description was changed while no server ran."""
    async with serving(tmp_path / "store") as service:
        created = await _create_half_answered(service, 6, 4)
    await asyncio.to_thread((tmp_path / "store" / "_" / created["id"] / "object.json").write_bytes, b"{")
    with capture_logs() as logs:
        async with serving(tmp_path / "store") as service:
            async with asyncio.timeout(10):
                while (await service.get(f"/v1/batches/{created['id']}")).status_code != 200:
                    await asyncio.sleep(0.02)
            batch = await service.until(created)
            outputs = await service.results(batch["output_file_id"])

    assert (batch["status"], batch["errors"]["data"][0]["code"], len(outputs)) == ("failed", "damaged", 4)
    assert [each["event"] for each in logs if each["event"] in {"batch.ended", "batch.crashed"}] == ["batch.ended"]


async def test_two_workers_share_the_work(tmp_path: Path) -> None:
    """Each batch is run by one of them, and both know all."""
    async with serving(tmp_path / "store") as first, serving(tmp_path / "store") as second:
        created = [await first.create(lines(30)) for _ in range(4)]
        batches = [await second.until(each) for each in created]
        outputs = [await second.results(each["output_file_id"]) for each in batches]

        assert [each["status"] for each in batches] == ["completed"] * 4
        assert [len(each) for each in outputs] == [30] * 4
        assert len(first.model.seen) + len(second.model.seen) == 120
