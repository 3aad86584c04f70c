"""
The URLs that KServe's gateway gives a service, answered here too, so that clients need not know whether it is there.

Source: https://github.com/kserve/kserve, LLMInferenceService (v1alpha2), its HTTPRoute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from appliance.config import Config
from appliance.protocols.gateway import HEADER, prefix_of


class Published:
    """
    An ASGI application that is also below ``/NAMESPACE/NAME`` and ``/publishers/NAMESPACE/models/MODEL``.
    """

    def __init__(self, app: ASGIApp, namespace: str, name: str, models: Callable[[], Iterable[str]]) -> None:
        self._app = app
        self._service = f"/{namespace}/{name}"
        self._publisher = prefix_of(namespace)
        self._models = models

    @classmethod
    def of(cls, config: Config, models: Callable[[], Iterable[str]], app: ASGIApp) -> ASGIApp:
        """
        The application as the config publishes it, which may be nowhere else; `models` are all names at this moment.
        """
        if config.metadata.name is None:
            return app
        return cls(app, config.metadata.namespace, config.metadata.name, models)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            self._route(scope)
        await self._app(scope, receive, send)

    def _route(self, scope: Scope) -> None:
        path = scope["path"]
        if path == self._service or path.startswith(f"{self._service}/"):
            _move(scope, path.removeprefix(self._service))
        models = self._models() if path.startswith(f"/{self._publisher}") else ()
        # The longest first: a name may go on where another ends, org/model and org.
        for model in sorted(models, key=len, reverse=True):
            place = f"/{self._publisher}{model}"
            if path == place or path.startswith(f"{place}/"):
                others = [header for header in scope["headers"] if header[0].lower() != HEADER.encode()]
                scope["headers"] = [*others, (HEADER.encode(), place[1:].encode())]
                _move(scope, path.removeprefix(place))
                return


def _move(scope: Scope, path: str) -> None:
    scope["path"] = path or "/"
    scope["raw_path"] = scope["path"].encode()
