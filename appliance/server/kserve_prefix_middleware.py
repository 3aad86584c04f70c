"""The URLs that KServe's gateway gives a service, answered here too, so that clients need not know whether it is there.

Source: https://github.com/kserve/kserve, LLMInferenceService (v1alpha2), its HTTPRoute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from appliance.api.kserve_names import HEADER, prefix_of
from appliance.config.root import MetadataConfig


class KServeHostMiddleware:
    """An ASGI application that is also below ``/NAMESPACE/NAME``; without a name it is nowhere else."""

    def __init__(self, app: ASGIApp, metadata: MetadataConfig) -> None:
        self._app = app
        self._place = None if metadata.name is None else f"/{metadata.namespace}/{metadata.name}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP and self._place is not None:
            _strip(scope, self._place)
        await self._app(scope, receive, send)


class KServePrefixMiddleware:
    """An ASGI application that is also below ``/publishers/NAMESPACE/models/MODEL``, where the service has a name.

    It belongs behind the gate: which models there are is not for everybody to try out.
    """

    def __init__(self, app: ASGIApp, metadata: MetadataConfig, models: Callable[[], Iterable[str]]) -> None:
        """`models` are the names that the current caller may use at this moment."""
        self._app = app
        self._prefix = None if metadata.name is None else prefix_of(metadata.namespace)
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP and self._prefix and scope["path"].startswith(f"/{self._prefix}"):
            self._route(scope)
        await self._app(scope, receive, send)

    def _route(self, scope: Scope) -> None:
        # The longest first: a name may go on where another ends, org/model and org.
        for model in sorted(self._models(), key=len, reverse=True):
            place = f"/{self._prefix}{model}"
            if _strip(scope, place):
                others = [header for header in scope["headers"] if header[0].lower() != HEADER.encode()]
                scope["headers"] = [*others, (HEADER.encode(), place[1:].encode())]
                return


def _strip(scope: Scope, place: str) -> bool:
    """Have a request below a place be one below the root; whether it is one."""
    path = scope["path"]
    if path != place and not path.startswith(f"{place}/"):
        return False
    scope["path"] = path.removeprefix(place) or "/"
    scope["raw_path"] = scope["path"].encode()
    return True
