"""The pages in a real browser, before models that need no engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import barriers, keep, opened
from playwright.sync_api import expect
from reference_servers import serving

DOUBLES = Path(__file__).parent.parent / "inference_doubles.py"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a model of each kind."""
    command: list[str | Path] = [sys.executable, DOUBLES, "port={http}", "host=127.0.0.1"]
    with serving(tmp_path_factory.mktemp("docs") / "log", command, "/v2/health/ready") as server:
        yield server.url


def test_an_operation_shows_its_types_and_sends_a_request(url: str, tmp_path: Path) -> None:
    """The fields of the request and their types are listed; the form starts with the smallest request."""
    with opened(f"{url}/docs") as page:
        expect(page.locator("h2").first).to_have_text("OpenAI", timeout=30_000)
        page.click("summary:has-text('POST /v1/completions')")
        completions = page.locator("details", has_text="POST /v1/completions").first
        expect(completions.locator("p")).to_have_text("Also at /openai/v1/completions")
        expect(completions.locator("table").first).to_contain_text("prompt")
        completions.locator("textarea").fill('{"model": "writer", "prompt": "hi"}')
        completions.locator("button").click()

        expect(completions.locator("pre")).to_contain_text('"text": "HI"', timeout=30_000)
        assert barriers(page) == []
        keep(page, tmp_path, "docs")


def test_a_path_has_the_models_to_choose_from(url: str) -> None:
    """A parameter of the path is a list."""
    with opened(f"{url}/docs") as page:
        page.click("summary:has-text('GET /v2/models/{name} ')", timeout=30_000)
        metadata = page.locator("details", has_text="GET /v2/models/{name} ").first
        metadata.locator("select").select_option("mood")
        metadata.locator("button").click()

        expect(metadata.locator("pre")).to_contain_text('"name":"mood"', timeout=30_000)


def test_the_playground_streams_a_chat(url: str) -> None:
    """The response streams into the conversation; Clear removes both."""
    with opened(f"{url}/") as page:
        expect(page.locator("#status")).to_have_text("Ready", timeout=30_000)
        page.fill("#message", "hi there")
        page.click("text=Send")
        expect(page.locator(".turn.assistant .text")).to_have_text("HITHERE", timeout=30_000)
        page.click("text=Clear")

        expect(page.locator(".turn")).to_have_count(0)
