"""Traces by OpenTelemetry. Imported only where they are switched on: it is an extra."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import time_ns

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.requests import Request
from structlog.contextvars import bound_contextvars

from app.tracing import Tracing

#: How long a service that stops may wait for those who collect its traces.
_LAST_SPANS_SECONDS = 3.0


class OpenTelemetry(Tracing):
    """Makes spans, as part of a trace that the client has begun (W3C Trace Context) if it has.

    Args:
        provider: where they go.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("posemux")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, request: Request) -> Iterator[None]:
        """See `Tracing`; the log names the trace, too."""
        with (
            self._tracer.start_as_current_span(
                request.method,
                self._propagator.extract(request.headers),
                trace.SpanKind.SERVER,
                {
                    "http.request.method": request.method,
                    "url.path": request.url.path,
                    "pose.request_id": request.state.request_id,
                },
            ) as span,
            bound_contextvars(trace_id=trace.format_trace_id(span.get_span_context().trace_id)),
        ):
            yield

    def answered(self, request: Request, status: int) -> None:
        """See `Tracing`."""
        span = trace.get_current_span()
        route = getattr(request.scope.get("route"), "path", None)
        if route is not None:
            # A path that there is: others would be as many names as clients make up.
            span.update_name(f"{request.method} {route}")
            span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", status)
        for name, value in request.state.details.items():
            if isinstance(value, str | int):
                span.set_attribute(f"pose.{name}", value)
        if status >= 500:
            span.set_status(trace.StatusCode.ERROR)

    def stages(self, seconds: Mapping[str, float], image: int) -> None:
        """See `Tracing`."""
        begin = time_ns() - sum(map(_nanoseconds, seconds.values()))
        for stage, duration in seconds.items():
            span = self._tracer.start_span(
                stage, attributes={"pose.image": image}, start_time=begin
            )
            begin += _nanoseconds(duration)
            span.end(begin)

    def shut_down(self) -> None:
        """See `Tracing`."""
        # It would wait for half a minute for a collector that does not answer.
        last = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        last.start()
        last.join(_LAST_SPANS_SECONDS)


def exporting(version: str) -> TracerProvider:
    """What sends spans by OTLP over HTTP, as the environment's `OTEL_` variables say.

    Args:
        version: the service's.
    """
    resource = Resource.create({"service.version": version})
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "posemux"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
