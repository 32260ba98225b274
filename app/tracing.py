"""Traces: a span for each request and for each of its stages, where they are switched on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starlette.requests import Request

if TYPE_CHECKING:
    from app.settings import Settings


class Tracing:
    """Traces nothing: what there is unless OpenTelemetry is installed and switched on."""

    @contextmanager
    def request(self, request: Request) -> Iterator[None]:
        """A span for a request, in which its stages' spans are."""
        yield

    def answered(self, request: Request, status: int) -> None:
        """Describe the request's span, once its answer is known."""

    def stages(self, seconds: Mapping[str, float], image: int) -> None:
        """Spans for what has just been done in the request whose context this is.

        Args:
            seconds: how long each stage took, in their order; the last one has just ended.
            image: which one of the request's.
        """

    def shut_down(self) -> None:
        """Send what is still here, for as long as that takes a moment only."""


def tracing(settings: Settings, version: str) -> Tracing:
    """The tracing of the settings.

    Args:
        settings: whether there is any; the variables of OpenTelemetry itself tell the rest.
        version: the service's, for those who read the traces.

    Raises:
        ValueError: OpenTelemetry is not installed.
    """
    if not settings.traces:
        return Tracing()
    try:
        from app.opentelemetry import OpenTelemetry, exporting
    except ModuleNotFoundError as error:
        raise ValueError("POSE_TRACES needs OpenTelemetry: pip install 'posemux[otel]'") from error
    return OpenTelemetry(exporting(version))
