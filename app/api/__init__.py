"""HTTP, and nothing but HTTP: what each route takes and answers."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import cast
from weakref import WeakValueDictionary

from prometheus_client import CollectorRegistry
from starlette.requests import HTTPConnection

from app.engine import Engine
from app.keys import KeyFile, Limits
from app.metrics import Metrics
from app.settings import Settings
from app.sharing import Room
from app.tracing import Tracing
from models import Card


@dataclass(frozen=True)
class Service:
    """What the routes work with; `create_app` makes one for each application."""

    settings: Settings
    cards: dict[str, Card]
    """Of the loaded pose models by their names, in the settings' order."""
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
    uploads: Room
    """For the bytes of all requests, from when they come in until the answer is ready."""
    streams: Room
    """For those that are open."""
    _permits: WeakValueDictionary[str, asyncio.Semaphore] = field(
        default_factory=WeakValueDictionary, init=False
    )

    def permits(self, client: str) -> asyncio.Semaphore:
        """As many for a client as there are threads: nobody else waits for more of it than that."""
        return self._permits.setdefault(client, asyncio.Semaphore(self.settings.decode_threads))


def client_of(connection: HTTPConnection) -> str:
    """Who asks, by key or else by address: what clients share is shared between these."""
    address = "" if connection.client is None else connection.client.host
    return str(connection.state.details.get("key", address))


def service_of(connection: HTTPConnection) -> Service:
    """The service that a request or a stream has come to."""
    return cast(Service, connection.app.state.service)


async def current_service(connection: HTTPConnection) -> Service:
    """`service_of` as a route's dependency.

    FastAPI calls what is not a coroutine function in a thread: two thread switches a request.
    """
    return service_of(connection)
