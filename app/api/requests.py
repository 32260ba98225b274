"""Around every request: its id, its line in the log, its count in the metrics, its trace."""

from __future__ import annotations

import logging
import re
from contextlib import nullcontext
from http import HTTPStatus
from time import perf_counter
from urllib.parse import quote
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from app.api.problems import internal_error, problem
from app.metrics import Metrics
from app.tracing import Tracing

_logger = logging.getLogger(__name__)

#: A client's own id must fit into a line of the log.
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
#: Asked for every few seconds by machines: of no interest in the log unless something is amiss.
_POLLED = ("/livez", "/readyz", "/metrics")
#: The messages that begin an answer; the second one is for a WebSocket that is refused.
_ANSWERS = ("http.response.start", "websocket.http.response.start", "websocket.accept")
#: Switching protocols: what a WebSocket that is let in is answered.
_OPEN = 101
#: RFC 6455's code for what nobody foresaw.
_UNEXPECTED = 1011


class RequestRecorder:
    """ASGI middleware that names, logs, counts and traces requests, and answers what nobody caught.

    A WebSocket is a request that takes long: it is named and logged, and not traced.

    It sets `request.state.request_id` (the client's `X-Request-ID` if that is sane) and
    `request.state.begin` (in `time.perf_counter()`). What answers sets
    `request.state.representation` once it is known, for the metrics, and adds to
    `request.state.details` what belongs into the request's line in the log: nothing that the client
    made up.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        begin = request.state.begin = perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _SANE_ID.fullmatch(given) else uuid4().hex
        request.state.request_id = request_id
        request.state.representation = "none"
        request.state.details = {}
        status: int | None = None

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "websocket.close" and status is None:
                detail = f"There is no stream at {scope['path']}, only at /stream."
                await problem(request, HTTPStatus.NOT_FOUND, detail)(scope, receive, send_on)
                return
            if message["type"] in _ANSWERS:
                status = message.get("status", _OPEN)
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        traced = scope["type"] == "http" and _route(request) not in _POLLED
        tracing = self._tracing.request(Request(scope)) if traced else nullcontext()
        with bound_contextvars(request_id=request_id), tracing:
            try:
                await self._app(scope, receive, send_on)
            except Exception:
                _logger.exception("unhandled error")
                if status == _OPEN:
                    await send({"type": "websocket.close", "code": _UNEXPECTED})
                    return
                if status is not None:
                    raise  # half an answer is under way: only hanging up is left
                await internal_error(request)(scope, receive, send_on)
            finally:
                if traced:
                    self._tracing.answered(Request(scope), status or 499)
                self._record(request, status or 499, perf_counter() - begin)

    def _record(self, request: HTTPConnection, status: int, seconds: float) -> None:
        path = _route(request)
        method = request.scope.get("method", "WS")
        quiet = path in _POLLED and status < 400
        _logger.log(
            logging.DEBUG if quiet else logging.INFO,
            "request",
            extra={
                "method": method,
                "path": quote(path),
                "status": status,
                "duration_ms": round(1000 * seconds, 1),
                **request.state.details,
            },
        )
        key = request.state.details.get("key")
        if key is not None and status != _OPEN:
            self._metrics.key_requests.labels(key, str(status)).inc()
        if method == "POST" and path == "/pose":
            representation = request.state.representation
            self._metrics.requests.labels(representation, str(status)).inc()
            self._metrics.request_duration.labels(representation).observe(seconds)


def _route(request: HTTPConnection) -> str:
    """The path in this service, wherever below an address it is mounted."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))
