"""
The page at `/`: the models and how they are, a playground, and the config; one file that needs nothing from elsewhere.

It has no data of its own: it asks the routes that everyone asks, with the key its reader gives it.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from litestar import MediaType, Request, Response, get
from litestar.handlers import BaseRouteHandler

from appliance.auth import PUBLIC, Authorizer
from appliance.ui.redacted_config import RedactedConfig

_HERE = Path(__file__).parent

# In the order in which each needs the ones before.
_SCRIPTS = ("server.js", "models.js", "playground.js", "page.js")


def routes(has_page: bool, paths: Sequence[str], told: RedactedConfig, access: Authorizer) -> list[BaseRouteHandler]:
    """`GET /`, for people the page and for programs a list of `paths`; and `GET /config`.

    Without the page the list alone. The page is open, and asks its reader for the key that all else wants.
    """
    index = {"name": "appliance", "routes": sorted(paths)}

    @get("/", name="index", sync_to_thread=False, opt={PUBLIC: True})
    def show(
        request: Request[Any, Any, Any],
    ) -> Response[Any]:  # Any: Litestar's user, auth and state, which we have not
        if has_page and "text/html" in request.headers.get("accept", ""):
            text, policy = page()
            return Response(text, media_type=MediaType.HTML, headers={"content-security-policy": policy})
        access.require_key()
        return Response(index)

    @get("/config", name="config", sync_to_thread=False)
    def show_config() -> Response[str]:
        access.require_every_model("read the config")
        return Response(told.as_yaml(), media_type=MediaType.TEXT)

    return [show, show_config] if has_page else [show]


@cache
def page() -> tuple[str, str]:
    """The page, and the policy under which it runs: nothing but its own style and script, and no other server.

    Source: https://www.w3.org/TR/CSP3/
    """
    style = _read("page.css")
    # One script of several modules: what they import from each other is simply there.
    script = re.sub(r"^(?:import .*\n|export )", "", "".join(map(_read, _SCRIPTS)), flags=re.MULTILINE)
    text = _read("page.html").replace("/* page.css */", style).replace("/* page.js */", script)
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
