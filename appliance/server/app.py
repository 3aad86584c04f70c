"""The web application: every protocol's routes over one lifecycle."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from litestar import Litestar
from litestar.handlers import BaseRouteHandler

from appliance import ui
from appliance.api import error_responses, health, metrics, oip, openai, openapi
from appliance.api.kserve_names import KServeNames
from appliance.api.request_body import BodyReader
from appliance.api.route_tags import public_paths
from appliance.auth import Authorizer
from appliance.config import Config, LoadedConfig
from appliance.config.loader import digest
from appliance.config.security import AuthConfig
from appliance.core.model import SINGLE_FRONT_END
from appliance.models.factory import ModelFactory
from appliance.models.health import HealthReport, public
from appliance.models.manager import ModelManager
from appliance.server.kserve_prefixes import Fresh, Publishing
from appliance.server.middleware import RequestMiddleware
from appliance.server.worker_health import HealthProvider, MultiWorkerHealth, SingleProcessHealth, WorkerInfo
from appliance.telemetry.recorder import RequestRecorder, TelemetrySettings
from appliance.ui.redacted_config import RedactedConfig


def create_app(
    config: Config,
    seat: WorkerInfo | None = None,
    secrets: Collection[str] = (),
    factory: ModelFactory | None = None,
) -> Litestar:
    """All routes; the load begins with the application's start-up and does not hold it up.

    `app.state` has the `manager` behind it, the `outlook` of its probes, what it has `published` for other threads,
    its `telemetry`, and `apply`, which has all of it go by a config that differs in hot keys; `seat` is this process's
    place among several workers. `secrets` are texts that nobody may be shown.
    """
    front_end = SINGLE_FRONT_END if seat is None else seat.front_end
    manager = ModelManager(config, front_end, factory=factory)
    published = SingleProcessHealth(manager) if seat is None else MultiWorkerHealth(manager, seat)
    outlook = Fresh(published, published.publish)
    telemetry, intake, told = _telemetry(config), BodyReader(config.server), RedactedConfig(config, secrets)
    gateway = KServeNames(config.metadata.namespace if config.metadata.name else None)
    handlers = [
        *openai.routes(manager, gateway, intake),
        *oip.routes(manager, outlook.standing, intake),
        *openapi.routes(manager),
        *_probes(outlook, manager),
    ]
    paths = [path for handler in handlers for path in handler.paths]
    handlers += ui.routes(config.server.page, paths, told, manager.authorizer)
    app = _app(manager, handlers, manager.authorizer, telemetry)
    app.state.manager, app.state.intake = manager, intake
    app.state.outlook, app.state.published, app.state.telemetry = outlook, published, telemetry

    def apply(loaded: LoadedConfig) -> None:
        manager.apply(loaded.config)
        intake.apply(loaded.config.server)
        telemetry.apply(_settings(loaded.config))
        told.apply(loaded.config, loaded.secrets)

    app.state.apply = apply
    app.on_startup.append(manager.start)
    app.on_shutdown.extend([manager.stop, telemetry.stop])
    if seat is not None or config.server.probe_port is not None:
        publishing = Publishing(published, manager)
        app.on_startup.append(publishing.begin)
        app.on_shutdown.append(publishing.stop)
    return app


def create_probes(manager: ModelManager, outlook: HealthProvider, telemetry: RequestRecorder) -> Litestar:
    """Probes and metrics alone, open to whoever reaches them, for a listener of its own in a thread of its own.

    What it calls of `manager` and `telemetry` may be called from any thread.
    """
    everybody = Authorizer(AuthConfig())
    return _app(manager, _probes(outlook, manager, everybody), everybody, telemetry)


def _telemetry(config: Config) -> RequestRecorder:
    # As KServe's logger says whose payloads they are.
    metadata, settings = config.metadata, _settings(config)
    if metadata.name is None:
        return RequestRecorder(settings)
    facts = {"inferenceservicename": metadata.name, "namespace": metadata.namespace, "component": "predictor"}
    return RequestRecorder(settings, f"/{metadata.namespace}/{metadata.name}", facts)


def probe_settings(config: Config) -> TelemetrySettings:
    """What is told of requests to the probe port: no bodies are kept, and nothing is traced."""
    return TelemetrySettings(access=config.logging.access, digest=digest(config))


def _settings(config: Config) -> TelemetrySettings:
    return TelemetrySettings(config.logging.access, config.logging.payloads, config.tracing, digest(config))


def _probes(
    outlook: HealthProvider, manager: ModelManager, access: Authorizer | None = None
) -> Sequence[BaseRouteHandler]:
    access = manager.authorizer if access is None else access

    def standing() -> HealthReport:
        now = outlook.standing()
        # Whether all is well is for everyone; what the models are called, and what ails them, is not.
        if not access.sees_every_model:
            names: dict[str, str] = {}
            for entry, name in manager.visible():
                names.setdefault(entry.config.name, name)
            # A key may be for an alias: that is the only name it knows.
            models = [{**model, "name": names[model["name"]]} for model in now.models if model["name"] in names]
            now = replace(now, models=models, config=None, workers=())
        # What an error says is for those who run the server.
        return now if access.is_operator else public(now)

    return [*health.routes(standing), *metrics.routes(outlook.metrics, access.require_metrics)]


def _app(
    manager: ModelManager, handlers: Sequence[BaseRouteHandler], access: Authorizer, telemetry: RequestRecorder
) -> Litestar:
    server = manager.config.server
    app = Litestar(
        handlers,
        exception_handlers={Exception: error_responses.render},
        request_max_body_size=server.max_body_bytes,
        # Ours tells of the paths below models, which Litestar knows as one.
        openapi_config=None,
        # Litestar's own would take over the root logger.
        logging_config=None,
    )
    # Around the router: Litestar's own middleware does not see requests without a route.
    app.asgi_handler = RequestMiddleware(app.asgi_handler, manager, access, telemetry, public_paths(handlers))
    return app
