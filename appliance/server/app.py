"""
The web application: every protocol's routes over one lifecycle.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from litestar import Litestar
from litestar.handlers import BaseRouteHandler

from appliance import page
from appliance.config import Config
from appliance.lifecycle import Lifecycle
from appliance.protocols import errors, health, metrics, oip, openai, openapi
from appliance.protocols.gateway import Gateway
from appliance.server.observed import Observed
from appliance.server.outlook import Alone, Outlook, Seat, Together
from appliance.server.published import Published


def create_app(config: Config, seat: Seat | None = None, secrets: Collection[str] = ()) -> Litestar:
    """
    All routes; the load begins with the application's start-up and does not hold it up.

    `app.state` has the `lifecycle` behind it and the `outlook` of its probes; `seat` is this process's place among
    several workers. `secrets` are texts that nobody may be shown.
    """
    lifecycle = Lifecycle(config)
    outlook = Alone(lifecycle) if seat is None else Together(lifecycle, seat)
    tensors = oip.routes(lifecycle, outlook.standing, config.server)
    gateway = Gateway(config.metadata.namespace if config.metadata.name else None)
    handlers = [*openai.routes(lifecycle, gateway), *tensors, *openapi.routes(lifecycle), *_probes(outlook)]
    paths = [path for handler in handlers for path in handler.paths]
    app = _app(config, [*handlers, *page.routes(config, paths, secrets)])
    app.state.lifecycle, app.state.outlook = lifecycle, outlook
    app.on_startup.append(lifecycle.begin)
    app.on_shutdown.append(lifecycle.stop)
    if isinstance(outlook, Together):
        app.on_startup.append(outlook.begin)
        app.on_shutdown.append(outlook.stop)
    return app


def create_probes(config: Config, outlook: Outlook) -> Litestar:
    """
    Probes and metrics alone, for a listener that a flood of requests cannot fill.
    """
    return _app(config, _probes(outlook))


def _probes(outlook: Outlook) -> Sequence[BaseRouteHandler]:
    return [*health.routes(outlook.standing), *metrics.routes(outlook.metrics)]


def _app(config: Config, handlers: Sequence[BaseRouteHandler]) -> Litestar:
    app = Litestar(
        handlers,
        exception_handlers={Exception: errors.render},
        request_max_body_size=config.server.max_body_bytes,
        # Ours tells of the paths below models, which Litestar knows as one.
        openapi_config=None,
        # Litestar's own would take over the root logger.
        logging_config=None,
    )
    # Around everything: Litestar's middleware sees no request that has no route.
    app.asgi_handler = Observed(Published.of(config, app.asgi_handler))
    return app
