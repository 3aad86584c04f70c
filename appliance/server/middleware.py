"""The one ASGI middleware: request id, context, authentication, response headers, send timeout and telemetry.

It wraps Litestar's router, because Litestar's own middleware does not see requests without a route.
Sources: https://cheatsheetseries.owasp.org/cheatsheets/HTTP_Headers_Cheat_Sheet.html, and for the URLs of KServe's
gateway https://github.com/kserve/kserve, LLMInferenceService (v1alpha2), its HTTPRoute.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from functools import cache, partial
from typing import Any

import structlog
from litestar.enums import HttpMethod, ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send
from litestar.utils import normalize_path

from appliance.api import PROBE, PROTOCOL, websocket
from appliance.api.disconnect import SEND_CHUNK, cancel_tasks, discard
from appliance.api.error_responses import rejection
from appliance.api.kserve_names import HEADER, prefix_of
from appliance.auth import Authorizer, authenticated
from appliance.auth.allowed_hosts import is_local
from appliance.core.errors import RequestError
from appliance.core.request_context import CLIENT_CLOSED_REQUEST, SAFE_ID, RequestContext, use_context
from appliance.models.manager import ModelManager
from appliance.server.cross_origin import CrossOriginPolicy, RawHeaders
from appliance.telemetry.payload_log import BodyCapture
from appliance.telemetry.recorder import RequestRecorder

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# Granian takes messages to a client that has left, and to a fast one, without suspending the sender. A stream whose
# source is always ready would then occupy the event loop, which could not notice that the client has left.
_MESSAGES_PER_TURN = 32

_SECURITY_HEADERS: RawHeaders = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]

# A year is the least that browsers' preload lists accept.
_HSTS: RawHeaders = [(b"strict-transport-security", b"max-age=31536000")]

# Added unless the response sets them: responses are for one caller at one moment.
_DEFAULT_HEADERS: RawHeaders = [(b"cache-control", b"no-store")]

# The same for HTML, which by default may load nothing.
_HTML_HEADERS: RawHeaders = [
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-opener-policy", b"same-origin"),
]


class RequestMiddleware:
    """Wraps an ASGI application; every path requires an API key if there are keys, except the public ones."""

    def __init__(
        self,
        app: ASGIApp,
        manager: ModelManager,
        authorizer: Authorizer,
        telemetry: RequestRecorder,
        public_paths: Collection[str] = (),
    ) -> None:
        self._app, self._manager, self._authorizer, self._telemetry = app, manager, authorizer, telemetry
        self._public_paths = frozenset(public_paths)
        self._cross_origin = CrossOriginPolicy(manager.config.server, public_paths)
        self._send_seconds = manager.config.server.timeouts.send_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            # It comes back here with a request for the handshake, and one for each message.
            await websocket.serve(self, scope, receive, send, self._manager.config.server.max_body_bytes)
            return
        # The first of each name.
        headers = {name.lower(): value for name, value in reversed(list(scope["headers"]))}
        request_id = headers.get(b"x-request-id", b"").decode("latin-1")
        if not (has_client_id := SAFE_ID.fullmatch(request_id) is not None):
            request_id = os.urandom(16).hex()
        with use_context(request_id) as context:
            context.has_client_id = has_client_id
            context.method, context.path = scope["method"], scope["path"]
            context.scheme, context.client = scope["scheme"], scope["client"]
            span = self._telemetry.start_span(context, partial(_trace_headers, headers))
            # vLLM reads the id and the trace from the headers.
            _set_headers(scope, {"x-request-id": request_id, **context.trace_headers})
            capture = self._telemetry.capture()
            add_headers = partial(self._response_headers, scope, context, self._cross_origin.response_headers(headers))
            exchange = _Exchange(context, receive, send, add_headers, self._send_seconds, capture)
            scope["extensions"] = {**(scope.get("extensions") or {}), SEND_CHUNK: exchange.send_chunk}  # type: ignore[dict-item]  # ours
            if capture is not None:
                capture.request.media_type = _media_type(headers)
            try:
                if preflight := self._cross_origin.preflight_headers(scope["method"], headers):
                    await exchange.respond(204, preflight, b"")
                else:
                    await self._respond(scope, exchange, context)
            except asyncio.CancelledError:
                if not exchange.is_stalled:
                    raise
                log.warning("client.stalled", seconds=self._send_seconds)
            except Exception as error:
                context.error, context.late_status = type(error).__name__, 500
                raise
            finally:
                context.ended = time.monotonic()
                exchange.close()
                cancel_tasks(scope)
                # Or the request would live until the next garbage collection, and so would a connection whose body
                # was not read: the exchange refers to the scope.
                scope["extensions"] = None
                # A request that was rejected early, or whose path is unknown, has no route.
                if (handler := scope.get("route_handler")) is not None:
                    context.route, context.protocol = scope["path_template"], handler.opt.get(PROTOCOL)
                    context.is_probe = context.is_probe or PROBE in handler.opt
                self._telemetry.record(context, capture, span)

    async def _respond(self, scope: HTTPScope, exchange: _Exchange, context: RequestContext) -> None:
        metadata, authorizer = self._manager.config.metadata, self._authorizer
        if metadata.name is not None:
            # KServe's gateway puts this before the paths of a service.
            _strip(scope, f"/{metadata.namespace}/{metadata.name}")
        if scope["method"] == HttpMethod.HEAD:
            # RFC 9110, section 9.3.2: the headers of GET; agents and load balancers ask whether there is a server.
            scope["method"] = HttpMethod.GET
        principal, scope["headers"] = authorizer.authenticate(scope["headers"])
        context.key, path = None if principal is None else principal.name, scope["path"]
        is_public = path in self._public_paths or (path == "/metrics" and authorizer.are_metrics_open)
        if principal is None and authorizer.is_closed and not is_public:
            await exchange.reject(path, authorizer.refusal(scope["headers"]))
            return
        with authenticated(principal, is_local=is_local(scope)):
            if metadata.name is not None:
                self._strip_model_prefix(scope, f"/{prefix_of(metadata.namespace)}")
            refusal = None if authorizer.is_closed else self._cross_origin.refusal(scope)
            if refusal is None:
                await self._app(scope, exchange.receive, exchange.send)
            elif normalize_path(scope["path"]) in self._public_paths:
                # Platforms call probes by any name of the server; pages of other origins learn the status only.
                with authenticated(None, is_foreign=True):
                    await self._app(scope, exchange.receive, exchange.send)
            else:
                await exchange.reject(scope["path"], refusal)

    def _strip_model_prefix(self, scope: HTTPScope, prefix: str) -> None:
        """Move ``/publishers/NAMESPACE/models/MODEL`` from the path to a header, for a model that the caller may use.

        After authentication, so that nobody can find out by trying which models there are.
        """
        if scope["path"].startswith(prefix):
            # The longest name first: org/model before org.
            for name in sorted((name for _, name in self._manager.visible()), key=len, reverse=True):
                if _strip(scope, prefix + name):
                    _set_headers(scope, {HEADER: (prefix + name)[1:]})
                    return

    def _response_headers(
        self,
        scope: HTTPScope,
        context: RequestContext,
        cross_origin: RawHeaders,
        headers: Iterable[tuple[bytes, bytes]],
    ) -> RawHeaders:
        """Return all headers of a response; ours replace those of the same name, except defaults and `Vary`."""
        given = {name.lower(): value for name, value in headers}
        ours = _SECURITY_HEADERS if scope["scheme"] != "https" else [*_SECURITY_HEADERS, *_HSTS]
        if cross_origin:
            ours = [*ours, *cross_origin]
        result = [*headers, *ours]
        if any(name in given for name, _ in ours):
            replaced = {name for name, _ in ours} - {b"vary"}
            result = [*(header for header in headers if header[0].lower() not in replaced), *ours]
        is_html = given.get(b"content-type", b"").startswith(b"text/html")
        defaults = [*_DEFAULT_HEADERS, *_HTML_HEADERS] if is_html else _DEFAULT_HEADERS
        result += [header for header in defaults if header[0] not in given]
        # While draining, HTTP/1.1 clients are told to reconnect elsewhere (RFC 9112, section 9.6); `Listener.dismiss`
        # tells those of HTTP/2.
        if scope["http_version"] == "1.1" and self._manager.is_stopping:
            result.append((b"connection", b"close"))
        result.append((b"x-request-id", context.id.encode()))
        return result


class _Exchange:
    """The messages of one request in both directions; cancels the request if the client stops reading the response.

    One timer serves all messages: a timer for each would cost more than writing it.
    """

    def __init__(
        self,
        context: RequestContext,
        receive: Receive,
        send: Send,
        add_headers: Callable[[Iterable[tuple[bytes, bytes]]], RawHeaders],
        seconds: float,
        capture: BodyCapture | None,
    ) -> None:
        self._context, self._receive, self._send = context, receive, send
        self._add_headers, self._seconds, self._capture = add_headers, seconds, capture
        self.is_stalled = self._is_complete = False
        self._sent = 0
        self._sending_since: float | None = None
        self._sending: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._timer = self._loop.call_later(seconds, self._check)

    async def receive(self) -> Any:  # Any: a message of ASGI
        """Receive a message; notes that the client left before the response was complete."""
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._is_complete:
            self._context.status = CLIENT_CLOSED_REQUEST
        elif self._capture is not None and message["type"] == "http.request":
            self._capture.request.add(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        """Send a message, and let other tasks run after every few."""
        if message["type"] == "http.response.start":
            self._context.status = self._context.status or message["status"]
            message["headers"] = self._add_headers(message["headers"])
            if self._capture is not None:
                given = {name.lower(): value for name, value in message["headers"]}
                self._capture.response.media_type = _media_type(given)
        elif message["type"] == "http.response.body":
            self._is_complete = not message.get("more_body")
            if self._context.method == HttpMethod.HEAD:
                message["body"] = b""
            if self._capture is not None:
                self._capture.response.add(message.get("body", b""))
        if self._sending is not None:
            # Chunks that are sent at once may overtake one that waits for the client.
            await self._sending
        self._sending_since = self._loop.time()
        await self._send(message)
        self._sending_since = None
        self._sent += 1
        if self._sent % _MESSAGES_PER_TURN == 0:
            await asyncio.sleep(0)

    def send_chunk(self, chunk: bytes) -> asyncio.Future[None] | None:
        """Send a chunk of a response that has begun; see `SendChunk`."""
        if self._capture is not None:
            self._capture.response.add(chunk)
        # Granian sends within this call, unless the client is slow.
        sending = self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        if not _is_pending(type(sending)):
            return None
        self._sending_since = self._loop.time()
        self._sending = asyncio.ensure_future(self._finish_sending(sending))
        return self._sending

    async def _finish_sending(self, sending: Awaitable[None]) -> None:
        await sending
        self._sending = self._sending_since = None

    async def respond(self, status: int, headers: RawHeaders, body: bytes) -> None:
        """Send a whole response."""
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def reject(self, path: str, error: RequestError) -> None:
        """Send an error before any route is looked up, in the format of the path's protocol."""
        await discard(self.receive)
        self._context.error = type(error).__name__
        body, headers = rejection(path, error)
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.respond(error.status, raw, body)

    def close(self) -> None:
        """End the timer; a response that is neither complete nor failed was abandoned by the client."""
        self._timer.cancel()
        if self._sending is not None:
            self._sending.cancel()
        if not self._is_complete and self._context.late_status is None:
            self._context.status = CLIENT_CLOSED_REQUEST

    def _check(self) -> None:
        since = self._sending_since
        left = self._seconds if since is None else since + self._seconds - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._check)
        elif self._task is not None:
            self.is_stalled = True
            self._task.cancel()


@cache
def _is_pending(awaitable: type) -> bool:
    """Whether objects of this type are to be awaited, as a future is; Granian has another one for what is done."""
    # The attribute by which asyncio knows futures; `asyncio.isfuture` takes objects alone, and as long as all the rest.
    return issubclass(awaitable, Coroutine) or hasattr(awaitable, "_asyncio_future_blocking")


def _strip(scope: HTTPScope, prefix: str) -> bool:
    path = scope["path"]
    if path != prefix and not path.startswith(f"{prefix}/"):
        return False
    scope["path"] = path.removeprefix(prefix) or "/"
    scope["raw_path"] = scope["path"].encode()
    return True


def _trace_headers(headers: Mapping[bytes, bytes]) -> Mapping[str, str]:
    return {
        name.decode(): headers[name].decode("latin-1") for name in (b"traceparent", b"tracestate") if name in headers
    }


def _set_headers(scope: HTTPScope, headers: Mapping[str, str]) -> None:
    """Replace the request headers of these names."""
    ours = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    names = {name for name, _ in ours}
    scope["headers"] = [*(header for header in scope["headers"] if header[0].lower() not in names), *ours]


def _media_type(headers: Mapping[bytes, bytes]) -> str:
    return headers.get(b"content-type", b"application/octet-stream").decode("latin-1")
