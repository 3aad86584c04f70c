"""The page at `/` in a real browser, before a real chat model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from browser import barriers, keep, opened
from playwright.sync_api import Route, expect
from questions import CAPITAL
from server_process import ServerProcess


def test_a_person_chats_with_the_keyboard_alone(server: ServerProcess, tmp_path: Path) -> None:
    """
    The answer to a typed question streams into the conversation, with the times of its tokens, and can be followed up.
    """
    with opened(f"{server.url}/") as page:
        expect(page.locator("#status")).to_have_text("Ready", timeout=30_000)
        page.locator("#message").focus()
        page.keyboard.press("ControlOrMeta+A")
        page.keyboard.type(CAPITAL)
        page.keyboard.press("Enter")

        expect(page.locator(".turn.assistant")).to_contain_text("Paris", timeout=60_000)
        expect(page.locator("#speed")).to_contain_text("tokens/s", timeout=60_000)
        expect(page.locator("#message")).to_be_focused()
        expect(page.locator("article")).to_contain_text(re.compile(r"KV tokens\s*[\d,]+, [\d,]+ planned"))
        expect(page.locator("article")).to_contain_text(re.compile(r"Load\s*\d+\.\d s, "))
        keep(page, tmp_path, "chat")


def test_a_long_answer_can_be_stopped(server: ServerProcess) -> None:
    """After a press on Stop nothing more comes, and the next message can be sent."""
    with opened(f"{server.url}/") as page:
        expect(page.locator("#model option")).to_have_text(["smollm2", "wild"], timeout=30_000)
        page.fill("#max-tokens", "2000")
        page.fill("#message", "Count from one to a thousand, in words.")
        page.click("text=Send")
        expect(page.locator(".turn.assistant .text")).not_to_be_empty(timeout=60_000)
        page.click("text=Stop")

        expect(page.locator("#stop")).to_be_disabled(timeout=30_000)
        expect(page.locator(".turn.error")).to_have_count(0)


def test_a_refusal_is_told_in_the_words_of_the_server(server: ServerProcess) -> None:
    """What the server refuses stands in the conversation with its reason."""
    with opened(f"{server.url}/") as page:
        expect(page.locator("#model option")).to_have_text(["smollm2", "wild"], timeout=30_000)
        page.route("**/v1/chat/completions", lambda route: _refuse(route, "The prompt is too long."))
        page.fill("#message", "x")
        page.click("text=Send")

        expect(page.locator(".turn.error")).to_contain_text("The prompt is too long.", timeout=30_000)


def _refuse(route: Route, message: str) -> None:
    route.fulfill(
        status=200, content_type="text/event-stream", body=f'data: {{"error": {{"message": "{message}"}}}}\n\n'
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_kept_out(server: ServerProcess, scheme: str, tmp_path: Path) -> None:
    """Contrast, names, roles and order are as axe wants them, in light and in dark."""
    with opened(f"{server.url}/", scheme) as page:
        expect(page.locator("article")).to_have_count(1, timeout=30_000)
        expect(page.locator("#yaml")).to_contain_text("smollm2", timeout=30_000)

        assert barriers(page) == []
        keep(page, tmp_path, scheme)


def test_each_state_is_told_in_words(server: ServerProcess, tmp_path: Path) -> None:
    """A model that is fetched shows its bytes and the time to go, one that failed its reason."""
    since = "2026-01-01T00:00:00+00:00"
    progress = {"fetched_bytes": 5e8, "total_bytes": 2e9, "bytes_per_second": 1e8, "eta_seconds": 15}
    models: list[dict[str, Any]] = [
        {"name": "coming", "state": "fetching", "reason": "downloading", "progress": progress},
        {"name": "gone", "state": "failed", "reason": "the engine died: exit code -9"},
    ]
    body = json.dumps({"status": "not live", "models": [{"since": since, "running": 0, **each} for each in models]})

    with opened(f"{server.url}/") as page:
        page.route("**/livez", lambda route: route.fulfill(status=200, content_type="application/json", body=body))

        expect(page.locator("#status")).to_have_text("Not ready: 2 of 2 models", timeout=30_000)
        expect(page.locator("[data-model=coming]")).to_contain_text("500 MB of 2.0 GB, 100 MB/s, 15 s left")
        expect(page.locator("[data-model=coming] progress")).to_have_attribute("value", "500000000")
        expect(page.locator("[data-model=gone] .state")).to_have_text("✕ failed")
        expect(page.locator("[data-model=gone]")).to_contain_text("the engine died: exit code -9")
        assert barriers(page) == []
        keep(page, tmp_path, "states")
