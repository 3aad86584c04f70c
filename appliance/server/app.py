"""
The web application: every protocol's routes over one lifecycle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from litestar import Litestar, get
from litestar.handlers import BaseRouteHandler

from appliance.config import Config
from appliance.config.digest import digest
from appliance.lifecycle import Lifecycle
from appliance.protocols import errors, health, metrics, oip, openai, openapi
from appliance.protocols.gateway import Gateway
from appliance.server.observed import Observed
from appliance.server.outlook import Alone, Outlook, Seat, Together
from appliance.server.published import Published
from appliance.telemetry.telemetry import Settings, Telemetry


def create_app(config: Config, seat: Seat | None = None) -> Litestar:
    """
    All routes; the load begins with the application's start-up and does not hold it up.

    `app.state` has the `lifecycle` behind it and the `outlook` of its probes; `seat` is this process's place among
    several workers.
    """
    lifecycle = Lifecycle(config)
    outlook = Alone(lifecycle) if seat is None else Together(lifecycle, seat)
    tensors = oip.routes(lifecycle, outlook.standing, config.server)
    gateway = Gateway(config.metadata.namespace if config.metadata.name else None)
    handlers = [*openai.routes(lifecycle, gateway), *tensors, *openapi.routes(lifecycle), *_probes(outlook)]
    telemetry = _telemetry(config)
    app = _app(config, telemetry, [*handlers, _index(handlers)])
    app.state.lifecycle, app.state.outlook, app.state.telemetry = lifecycle, outlook, telemetry
    app.on_startup.append(lifecycle.begin)
    app.on_shutdown.extend([lifecycle.stop, telemetry.stop])
    if isinstance(outlook, Together):
        app.on_startup.append(outlook.begin)
        app.on_shutdown.append(outlook.stop)
    return app


def create_probes(config: Config, outlook: Outlook, telemetry: Telemetry) -> Litestar:
    """
    Probes and metrics alone, for a listener that a flood of requests cannot fill.
    """
    return _app(config, telemetry, _probes(outlook))


def _telemetry(config: Config) -> Telemetry:
    # As KServe's logger says whose payloads they are.
    metadata, settings = config.metadata, telemetry_settings(config)
    if metadata.name is None:
        return Telemetry(settings)
    facts = {"inferenceservicename": metadata.name, "namespace": metadata.namespace, "component": "predictor"}
    return Telemetry(settings, f"/{metadata.namespace}/{metadata.name}", facts)


def telemetry_settings(config: Config) -> Settings:
    """
    What the config says is to be told of requests; `Telemetry.apply` takes them while it serves.
    """
    return Settings(config.logging.access, config.logging.payloads, config.tracing, digest(config))


def _probes(outlook: Outlook) -> Sequence[BaseRouteHandler]:
    return [*health.routes(outlook.standing), *metrics.routes(outlook.metrics)]


def _app(config: Config, telemetry: Telemetry, handlers: Sequence[BaseRouteHandler]) -> Litestar:
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
    app.asgi_handler = Observed(Published.of(config, app.asgi_handler), telemetry)
    return app


def _index(handlers: Sequence[BaseRouteHandler]) -> BaseRouteHandler:
    paths = sorted(path for handler in handlers for path in handler.paths)

    @get("/", name="index")
    async def index() -> dict[str, Any]:  # Any: JSON values
        return {"name": "appliance", "routes": paths}

    return index
