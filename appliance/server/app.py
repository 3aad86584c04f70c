"""The web application: the routes of all protocols, and the middleware around them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial

from litestar import Litestar
from litestar.handlers import BaseRouteHandler

from appliance import ui
from appliance.api import batches, error_responses, files, metrics, openai, openapi, probes
from appliance.api import responses as stored_responses
from appliance.api.body import BodyReader
from appliance.api.dialects import cohere, mistral, ollama, sagemaker, tei, vllm_server
from appliance.api.kserve_names import KServeNames
from appliance.api.model_client import ModelClient
from appliance.api.oip import v1, v2
from appliance.auth import PUBLIC, Authorizer
from appliance.batches.runner import BatchRunner
from appliance.batches.store import BatchStore
from appliance.config import Config, LoadedConfig
from appliance.config.server import ServerConfig
from appliance.core.model import SINGLE_FRONT_END
from appliance.models.factory import ModelFactory
from appliance.models.health import HealthReport, public
from appliance.models.manager import ModelManager
from appliance.responses.service import Responses
from appliance.server.middleware import RequestMiddleware
from appliance.server.worker_health import MultiWorkerHealth, ServerHealth, WorkerInfo
from appliance.telemetry.recorder import RequestRecorder
from appliance.ui.redacted_config import RedactedConfig

_ROUTES = (openai, stored_responses, cohere, mistral, ollama, sagemaker, tei, vllm_server)


def create_app(
    config: Config,
    worker: WorkerInfo | None = None,
    secrets: Collection[str] = (),
    factory: ModelFactory | None = None,
) -> Litestar:
    """Return the application with all routes; when it starts up, the models begin to load.

    `app.state` has the `manager`, the `health` for probes, the `telemetry`, and `apply`, which applies a config that
    differs in hot keys only. `worker` is this process among several; `secrets` are texts that are never shown.
    """
    manager = ModelManager(config, SINGLE_FRONT_END if worker is None else worker.front_end, factory=factory)
    health = ServerHealth(manager) if worker is None else MultiWorkerHealth(manager, worker)
    body_reader = BodyReader(lambda: manager.config.server)
    telemetry, redacted_config = RequestRecorder(config), RedactedConfig(config, secrets)
    responses = Responses(manager, telemetry, None if worker is None else worker.memory_folder)
    batch_runner, batch_handlers = _batches(manager, telemetry, body_reader, responses)
    names = KServeNames(config.metadata.namespace if config.metadata.name else None)
    client = ModelClient(manager, names, body_reader, responses, health.report)
    handlers = [
        *(handler for each in _ROUTES for handler in each.routes(client)),
        *batch_handlers,
        *v1.routes(manager, body_reader),
        *v2.routes(manager, health.report, body_reader),
        *openapi.routes(manager),
        *_probe_routes(health, manager, manager.authorizer),
    ]
    paths = partial(openapi.documented_paths, has_page=config.server.page)
    handlers += ui.routes(config.server.page, paths, redacted_config, manager.authorizer)

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncGenerator[None]:
        has_other_readers = worker is not None or config.server.probe_port is not None
        manager.start()
        async with health.published() if has_other_readers else nullcontext(), responses.running():
            try:
                async with nullcontext() if batch_runner is None else batch_runner.running():
                    yield
            finally:
                await manager.stop()
                await telemetry.stop()

    def apply(loaded: LoadedConfig) -> None:
        manager.apply(loaded.config)
        telemetry.apply(loaded.config)
        redacted_config.apply(loaded.config, loaded.secrets)

    app = _app(manager, handlers, manager.authorizer, telemetry, [lifespan])
    app.state.update({"manager": manager, "health": health, "telemetry": telemetry, "apply": apply})
    return app


def _batches(
    manager: ModelManager, telemetry: RequestRecorder, body_reader: BodyReader, responses: Responses
) -> tuple[BatchRunner | None, Sequence[BaseRouteHandler]]:
    """Return what runs batches, None if the config has none, and the routes, which say so."""
    runner = None
    if manager.config.batches is not None:
        store = BatchStore(manager.config.batches)
        store.open()
        runner = BatchRunner(store, manager, telemetry, error_responses.status_and_body, responses.handle)
    access = files.BatchAccess(runner, manager.authorizer)
    return runner, [*files.routes(access, body_reader.server), *batches.routes(access, body_reader)]


def create_probe_app(manager: ModelManager, health: ServerHealth, telemetry: RequestRecorder) -> Litestar:
    """Return an application with probes and metrics only, without keys, for a listener in a thread of its own.

    All that it calls of `manager` and `telemetry` is thread-safe.
    """
    authorizer = Authorizer(ServerConfig())
    return _app(manager, _probe_routes(health, manager, authorizer), authorizer, telemetry)


def _probe_routes(health: ServerHealth, manager: ModelManager, authorizer: Authorizer) -> Sequence[BaseRouteHandler]:
    def report() -> HealthReport:
        report = health.report()
        # The status is for everybody; names and states of the models are for those who may use them.
        if not authorizer.sees_every_model:
            names: dict[str, str] = {}
            for status, name in manager.visible():
                names.setdefault(status.name, name)
            # A key may be for an alias; then that is the only name it sees.
            models = [{**model, "name": names[model["name"]]} for model in report.models if model["name"] in names]
            report = replace(report, models=models, config=None, workers=())
        # The text of an error is for operators.
        return report if authorizer.is_operator else public(report)

    return [*probes.routes(report), *metrics.routes(health.metrics, authorizer.require_metrics)]


def _app(
    manager: ModelManager,
    handlers: Sequence[BaseRouteHandler],
    authorizer: Authorizer,
    telemetry: RequestRecorder,
    lifespan: Sequence[Callable[[Litestar], AbstractAsyncContextManager[None]]] = (),
) -> Litestar:
    app = Litestar(
        handlers,
        lifespan=lifespan,
        exception_handlers={Exception: error_responses.render},
        request_max_body_size=manager.config.server.max_body_bytes,
        # `appliance.api.openapi` builds the document at its first request.
        openapi_config=None,
        # Litestar's own would replace the root logger.
        logging_config=None,
    )
    # Around the router: Litestar's own middleware does not see requests without a route.
    public_paths = frozenset(path for handler in handlers if handler.opt.get(PUBLIC) for path in handler.paths)
    app.asgi_handler = RequestMiddleware(app.asgi_handler, manager, authorizer, telemetry, public_paths)
    return app
