"""The pages of the server: models, playground and config at `/`, and the API reference at `/docs`.

Each is one file that works offline. They have no data of their own: they use the routes that every client uses, with
the key that their reader enters.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from litestar import MediaType, Request, Response, get
from litestar.handlers import BaseRouteHandler

from appliance.auth import PUBLIC, Authorizer
from appliance.ui.redacted_config import RedactedConfig

_FOLDER = Path(__file__).parent

# The title of each page, its HTML, and its scripts in the order of their imports.
_INDEX = ("Appliance", "page.html", "server.js", "models.js", "markdown.js", "connect.js", "playground.js", "page.js")
_DOCS = ("Appliance: API", "docs.html", "server.js", "docs.js")


def routes(
    has_page: bool, paths: Callable[[], Sequence[str]], config: RedactedConfig, access: Authorizer
) -> list[BaseRouteHandler]:
    """Return `/`, which is a page for browsers and the list of `paths` for programs, `/docs`, `/schema` and `/config`.

    Without the page, `/` is the list, and there are no `/docs` and `/config`. The pages need no key and ask for one.
    """

    @get("/", name="index", sync_to_thread=False, opt={PUBLIC: True})
    def show_index(request: Request[Any, Any, Any]) -> Response[Any]:  # Any: Litestar's user, auth and state; a body
        if has_page and _is_browser(request):
            return _page(_INDEX)
        access.require_key()
        # KServe's clients of version 1 read the status.
        return Response({"name": "appliance", "status": "alive", "routes": paths()})

    @get("/schema", name="openapi-page", sync_to_thread=False)
    def show_schema() -> Response[str]:
        return _page(_DOCS)

    @get("/docs", name="docs", sync_to_thread=False, opt={PUBLIC: True})
    def show_docs(request: Request[Any, Any, Any]) -> Response[str]:  # Any: Litestar's user, auth and state
        if not _is_browser(request):
            access.require_key()
        return _page(_DOCS)

    @get("/config", name="config", sync_to_thread=False)
    def show_config() -> Response[str]:
        access.require_every_model("read the config")
        return Response(config.as_yaml(), media_type=MediaType.TEXT)

    return [show_index, show_schema, *([show_docs, show_config] if has_page else [])]


def _is_browser(request: Request[Any, Any, Any]) -> bool:  # Any: Litestar's user, auth and state
    return "text/html" in request.headers.get("accept", "")


def _page(parts: tuple[str, ...]) -> Response[str]:
    text, policy = _render(*parts)
    return Response(text, media_type=MediaType.HTML, headers={"content-security-policy": policy})


@cache
def _render(title: str, body: str, *scripts: str) -> tuple[str, str]:
    """Return a page and its Content-Security-Policy, which allows its own style and script and no other server.

    Source: https://www.w3.org/TR/CSP3/
    """
    style = _read("page.css")
    # One script of several modules: an import from another of them is already defined.
    script = re.sub(r"^(?:import .*\n|export )", "", "".join(map(_read, scripts)), flags=re.MULTILINE)
    text = _read("shell.html").replace("<!-- body -->\n", _read(body)).replace("<!-- title -->", title)
    text = text.replace("<!-- key_form.html -->\n", _read("key_form.html"))
    text = text.replace("/* page.css */", style).replace("/* page.js */", script)
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
