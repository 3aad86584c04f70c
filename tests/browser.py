"""A person's browser: headless Chromium, where the machine has one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import ConsoleMessage, Page, Request, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def opened(url: str, scheme: str = "light", expected: str = "a^") -> Iterator[Page]:
    """The page at `url`; at the end it must not have complained, nor asked anybody but its own server.

    `expected` is a pattern of complaints that belong to the test. Skips the test where no Chromium is installed.
    """
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("no Chromium is installed")
    complaints: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not re.search(expected, message.text):
            complaints.append(message.text)

    def see(request: Request) -> None:
        if not request.url.startswith((urljoin(url, "/"), "data:")):
            complaints.append(f"it asked {request.url}")

    with sync_playwright() as playwright:
        # Chromium's own sandbox wants rights that a container seldom has.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(color_scheme="dark" if scheme == "dark" else "light")
        page.on("console", hear)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", see)
        page.goto(url)
        yield page
        browser.close()
    assert not complaints


def barriers(page: Page) -> list[str]:
    """What axe finds that keeps people out (https://github.com/dequelabs/axe-core), and the elements it finds it at."""
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {node['html']}" for each in found for node in each["nodes"]]


def keep(page: Page, folder: Path, name: str) -> None:
    """A screenshot of the whole page, to be looked at."""
    page.screenshot(path=folder / f"{name}.png", full_page=True)
