"""HTTP, and nothing but HTTP: what each route takes and answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

from fastapi import Request
from prometheus_client import CollectorRegistry

from app.engine import Engine
from app.keys import KeyFile, Limits
from app.metrics import Metrics
from app.settings import Settings
from app.tracing import Tracing


@dataclass(frozen=True)
class Service:
    """What the routes work with; `create_app` makes one for each application."""

    settings: Settings
    engine: Engine
    metrics: Metrics
    registry: CollectorRegistry
    """What `/metrics` shows."""
    threads: ThreadPoolExecutor
    """Decodes and encodes images, off the event loop."""
    keys: KeyFile | None
    """Who may ask; without it everybody."""
    limits: Limits
    """How much each of them may."""
    tracing: Tracing
    """Where spans go, if anywhere."""


def service_of(request: Request) -> Service:
    """The service that a request has come to."""
    return cast(Service, request.app.state.service)


async def current_service(request: Request) -> Service:
    """`service_of` as a route's dependency.

    FastAPI calls what is not a coroutine function in a thread: two thread switches a request.
    """
    return service_of(request)
