"""Files: uploads, listings, downloads, limits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from batches.service import lines, serving
from structlog.testing import capture_logs
from test_routes import Client as PlainClient

from appliance.batches import runner
from appliance.batches.store import BatchStore
from appliance.config.batches import BatchesConfig
from appliance.core.errors import ApplianceError


async def test_a_file_comes_back_as_it_was_sent(tmp_path: Path) -> None:
    """Byte for byte, under both prefixes, with its name and size; deleted, it is gone from the disk."""
    content = bytes(range(256)) * 3000
    async with serving(tmp_path / "store") as service:
        file = await service.upload(content)
        shown = (await service.get(f"/openai/v1/files/{file['id']}")).json()
        downloaded = await service.get(f"/v1/files/{file['id']}/content")
        deleted = await service.delete(f"/v1/files/{file['id']}")
        gone = await service.get(f"/v1/files/{file['id']}")

    assert shown == file
    assert (file["object"], file["bytes"], file["filename"]) == ("file", len(content), "in.jsonl")
    assert (file["purpose"], file["expires_at"] - file["created_at"]) == ("batch", 720 * 3600)
    assert downloaded.content == content
    assert downloaded.headers["content-length"] == str(len(content))
    assert deleted.json() == {"id": file["id"], "object": "file", "deleted": True}
    assert gone.status_code == 404
    assert await asyncio.to_thread(lambda: [*tmp_path.glob("store/_/*")]) == []


async def test_lists_are_pages_with_the_newest_first(tmp_path: Path) -> None:
    """`after` and `limit` walk through files and batches; `purpose` and `order` choose files."""
    async with serving(tmp_path / "store") as service:
        batches = [await service.until(await service.create(lines(1))) for _ in range(3)]
        first = (await service.get("/v1/batches", params={"limit": 2})).json()
        second = (await service.get("/v1/batches", params={"limit": 2, "after": first["last_id"]})).json()
        inputs = (await service.get("/v1/files", params={"purpose": "batch", "order": "asc"})).json()
        wrong = [
            await service.get(path, params=params)
            for path, params in (
                ("/v1/files", {"limit": "0"}),
                ("/v1/files", {"order": "up"}),
                ("/v1/batches", {"limit": "101"}),
                ("/v1/batches", {"after": "batch_x"}),
            )
        ]

    ids = [each["id"] for each in batches[::-1]]
    assert [each["id"] for each in first["data"]] == ids[:2]
    assert (first["has_more"], first["first_id"]) == (True, ids[0])
    assert [each["id"] for each in second["data"]] == ids[2:]
    assert not second["has_more"]
    assert [each["id"] for each in inputs["data"]] == [each["input_file_id"] for each in batches]
    assert [each.status_code for each in wrong] == [400] * 4


async def test_a_wrong_upload_is_refused(tmp_path: Path) -> None:
    """The error names the field, and nothing of the file is kept."""
    wrong: list[tuple[dict[str, str], str, str]] = [
        ({"purpose": "fine-tune"}, "file", "purpose"),
        ({}, "file", "purpose"),
        ({"purpose": "batch"}, "other", "file"),
        ({"purpose": "batch" * 1000}, "file", "purpose"),
        (
            {"purpose": "batch", "expires_after[seconds]": "5", "expires_after[anchor]": "created_at"},
            "file",
            "expires_after",
        ),
        ({"purpose": "batch", "expires_after[seconds]": "3600"}, "file", "expires_after"),
    ]
    async with serving(tmp_path / "store") as service:
        answers = [
            await service.post("/v1/files", files={name: ("in.jsonl", b"{}")}, data=data) for data, name, _ in wrong
        ]

    assert [answer.status_code for answer in answers] == [400] * len(wrong)
    assert [answer.json()["error"]["param"] for answer in answers] == [param for *_, param in wrong]
    assert await asyncio.to_thread(lambda: [*tmp_path.glob("store/.uploads/*")]) == []


async def test_an_upload_that_is_no_form_is_refused(tmp_path: Path) -> None:
    """JSON is 415; a form that ends early is 400."""
    headers = {"content-type": "multipart/form-data; boundary=b"}
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{}'
    async with serving(tmp_path / "store") as service:
        as_json = await service.post("/v1/files", json={"purpose": "batch"})
        cut = await service.post("/v1/files", content=part, headers=headers)

    assert (as_json.status_code, cut.status_code) == (415, 400)
    assert cut.json()["error"]["code"] == "invalid_form"


async def test_a_form_with_two_files_is_refused(tmp_path: Path) -> None:
    """They are not taken for one."""
    files = [("file", ("a.jsonl", b"{}")), ("file", ("b.jsonl", b"{}"))]
    async with serving(tmp_path / "store") as service:
        answer = await service.post("/v1/files", files=files, data={"purpose": "batch"})
        kept = (await service.get("/v1/files")).json()["data"]

    assert (answer.status_code, answer.json()["error"]["code"], kept) == (400, "invalid_form", [])
    assert "'file' twice" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\\\data\\\\in.jsonl", "in.jsonl"),
        ("a%0D%0Ab\x1b.jsonl", "ab.jsonl"),
        ("..", "file.jsonl"),
        ("Übung 1.jsonl", "Übung 1.jsonl"),
    ],
)
async def test_the_name_of_a_file_is_no_path(tmp_path: Path, sent: str, kept: str) -> None:
    """The last component is kept, without what changes lines."""
    form = (
        '--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--b\r\nContent-Disposition: form-data; name="file"; filename="{sent}"\r\n\r\n{{}}\r\n--b--\r\n'
    )
    headers = {"content-type": "multipart/form-data; boundary=b"}
    async with serving(tmp_path / "store") as service:
        answer = await service.post("/v1/files", content=form.encode(), headers=headers)

    assert answer.json()["filename"] == kept


async def test_files_have_limits(tmp_path: Path) -> None:
    """One file, and all together: 413 names the key, and deleting makes room."""
    async with serving(tmp_path / "store", max_file_bytes=5000, max_bytes=8000) as service:

        async def upload(size: int) -> str:
            form = {"files": {"file": ("a", b"x" * size)}, "data": {"purpose": "batch"}}
            answer = await service.post("/v1/files", **form)  # type: ignore[arg-type]  # both
            return str(answer.json().get("id") or answer.json()["error"]["message"])

        large = await upload(5001)
        kept = [await upload(5000) for _ in range(2)]
        full = await upload(1)
        await service.delete(f"/v1/files/{kept[0]}")
        again = await upload(1)

    assert "batches.max_file_bytes" in large
    assert "batches.max_bytes" in full
    assert again.startswith("file-")


async def test_a_file_that_has_expired_is_gone(tmp_path: Path) -> None:
    """At its own time, and from the disk."""
    async with serving(tmp_path / "store") as service:
        file = await service.upload(b"{}", **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"})
        path = tmp_path / "store" / "_" / file["id"] / "object.json"
        await asyncio.to_thread(
            lambda: path.write_text(path.read_text().replace(str(file["expires_at"]), "1700000000"))
        )
        gone = await service.get(f"/v1/files/{file['id']}")
    async with serving(tmp_path / "store"), asyncio.timeout(10):
        while await asyncio.to_thread(path.exists):
            await asyncio.sleep(0.02)

    assert file["expires_at"] - file["created_at"] == 3600
    assert gone.status_code == 404


async def test_an_id_that_is_not_ours_is_404(tmp_path: Path) -> None:
    """Whatever it looks like."""
    ids = ["file-0", "../../etc/passwd", "file-" + "0" * 32, "..", "batch_" + "0" * 32]
    async with serving(tmp_path / "store") as service:
        shown = [await service.get(f"/v1/files/{each}") for each in ids]
        body = {"endpoint": "/v1/completions", "completion_window": "24h"}
        created = [await service.post("/v1/batches", json={**body, "input_file_id": each}) for each in ids]

    assert [answer.status_code for answer in shown] == [404] * len(ids)
    assert [(answer.status_code, answer.json()["error"]["param"]) for answer in created] == [
        (404, "input_file_id")
    ] * len(ids)


async def test_a_wrong_batch_is_refused(tmp_path: Path) -> None:
    """400, before anything is stored."""
    changes: list[tuple[dict[str, object], str | None]] = [
        ({"endpoint": "/v1/audio/speech"}, "endpoint"),
        ({"completion_window": "1 day"}, "completion_window"),
        ({"completion_window": "31d"}, "completion_window"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"input_file_id": 3}, None),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, None),
    ]
    async with serving(tmp_path / "store") as service:
        file = await service.upload(lines(1))
        body = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
        answers = [await service.post("/v1/batches", json=body | change) for change, _ in changes]
        listed = (await service.get("/v1/batches")).json()["data"]

    assert [answer.status_code for answer in answers] == [400] * len(changes)
    assert [answer.json()["error"]["param"] for answer in answers] == [param for _, param in changes]
    assert listed == []


async def test_without_batches_in_the_config_the_routes_say_how() -> None:
    """404 that names the key."""
    async with PlainClient() as client:
        answers = [
            await client.get("/v1/files"),
            await client.get("/v1/batches/batch_1"),
            await client.post("/v1/batches", json={}),
            await client.post("/v1/files", files={"file": ("a", b"")}),
        ]

    assert [answer.status_code for answer in answers] == [404] * 4
    assert all("`batches`" in answer.json()["error"]["message"] for answer in answers)


async def test_a_damaged_object_hides_no_other(tmp_path: Path) -> None:
    """Lists leave it out, it is 503 itself until it is deleted, and batches go on, after a restart too."""
    store = tmp_path / "store" / "_"
    async with serving(tmp_path / "store") as service:
        kept, damaged = [await service.until(await service.create(lines(1))) for _ in range(2)]
        file = await service.upload(b"{}")
    await asyncio.to_thread(lambda: [(store / each["id"] / "object.json").write_bytes(b"") for each in (damaged, file)])
    async with serving(tmp_path / "store") as service:
        batches = (await service.get("/v1/batches")).json()["data"]
        files = (await service.get("/v1/files")).json()["data"]
        shown = [await service.get(path) for path in (f"/v1/batches/{damaged['id']}", f"/v1/files/{file['id']}")]
        deleted = [await service.delete(f"/v1/files/{file['id']}") for _ in range(2)]
        ended = await service.until(await service.create(lines(1)))

    assert [each["id"] for each in batches] == [kept["id"]]
    assert file["id"] not in {each["id"] for each in files}
    assert len(files) == 4
    assert [answer.status_code for answer in shown] == [503, 503]
    assert [answer.status_code for answer in deleted] == [200, 404]
    assert ended["status"] == "completed"


async def test_a_failure_of_the_search_for_batches_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on after a pause."""
    monkeypatch.setattr(runner, "_FAILURE_SECONDS", 0.01)
    # No claim of ours, and nothing that is swept away.
    with capture_logs() as logs:
        async with serving(tmp_path / "store") as service:
            stray = tmp_path / "store" / ".claims" / "stray"
            await asyncio.to_thread(stray.mkdir)
            async with asyncio.timeout(20):
                while not any(each["event"] == "batches.failed" for each in logs):
                    await asyncio.sleep(0.02)
            await asyncio.to_thread(stray.rmdir)
            ended = await service.until(await service.create(lines(1)))

    assert ended["status"] == "completed"


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """The error names its key of the config."""
    file = tmp_path / "file"
    file.touch()
    for directory in (file, file / "batches"):
        with pytest.raises(ApplianceError, match=f"^{directory}: .*; batches.directory must be one"):
            BatchStore(BatchesConfig(directory=directory)).open()
