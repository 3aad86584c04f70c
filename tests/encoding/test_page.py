"""The page at `/` in a real browser, before a real embedding model."""

from __future__ import annotations

from pathlib import Path

from browser import barriers, keep, opened
from playwright.sync_api import expect
from server_process import ServerProcess


def test_texts_are_compared_in_a_table(server: ServerProcess, tmp_path: Path) -> None:
    """Texts that mean the same are nearer to each other than to one that does not, and the table says so."""
    with opened(f"{server.url}/") as page:
        expect(page.locator("#embed")).to_be_visible(timeout=30_000)
        page.fill("#texts", "A kitten is napping.\nThe cat sleeps.\nThe stock market fell.")
        page.click("text=Compare")
        expect(page.locator("#similarities tbody tr")).to_have_count(3, timeout=60_000)

        rows = [[float(cell) for cell in row.locator("td").all_inner_texts()] for row in page.locator("tbody tr").all()]
        assert [row[number] for number, row in enumerate(rows)] == [1.0, 1.0, 1.0]
        assert rows[0][1] > rows[0][2] + 0.2
        assert page.locator("tbody th").first.inner_text() == "1. A kitten is napping."
        assert barriers(page) == []
        keep(page, tmp_path, "similarity")
