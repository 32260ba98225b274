"""The same service on Ray Serve: one replica a device, on as many machines as there are.

A replica is the whole service, engine included, behind Serve's proxies in place of uvicorn.
Imported only where it is asked for: Ray is an extra.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import ray
from fastapi import FastAPI
from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry
from ray import serve
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs
from app.engine import Engine
from app.errors import NotReadyError
from app.main import build_pipeline, create_app
from app.metrics import Metrics
from app.pipeline import Pipeline
from app.settings import Settings

_logger = logging.getLogger(__name__)

NAME = "posemux"
#: How often a replica is asked for its health; Serve replaces it after the third bad answer.
_HEALTH_SECONDS = 2.0
#: How often a replica is started anew that does not come up.
_STARTS = 3
#: Uploads, and what the engine answers 503, are under way in a replica beside what it computes.
_BESIDE = 4
#: How long a scrape waits for the replicas.
_SCRAPE_SECONDS = 5.0
_CONNECT_SECONDS = 5.0


class Replicas(NamedTuple):
    """How many replicas there are: where the two differ, as many as requests need."""

    least: int = 1
    most: int = 1


class Gathered(NamedTuple):
    """What one replica measured."""

    replica: str
    node: str
    metrics: list[Metric]


# -------------------------------------------------------------------------------------- a replica


class Replica:
    """One service on one device.

    Args:
        settings: its own, those of whoever deployed it.
        build: makes its pipeline.
    """

    def __init__(
        self,
        settings: Settings,
        build: Callable[[Settings, Metrics], Pipeline] = build_pipeline,
    ) -> None:
        context = serve.get_replica_context()
        self._replica = context.replica_id.unique_id
        self._node = ray.util.get_node_ip_address()
        self._handle = serve.get_deployment_handle(context.deployment, context.app_name)
        logs.configure(
            settings.log_format, settings.log_level, replica=self._replica, node=self._node
        )
        self._app = create_app(settings, build=build)
        self._engine: Engine = self._app.state.service.engine

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application, whose lifespan Serve begins, and in the end ends."""
        begin = self._app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
            async with begin(app) as state:
                # Serve sends requests as soon as the lifespan has begun.
                try:
                    await asyncio.to_thread(self._engine.wait_until_ready)
                except NotReadyError as error:
                    raise RuntimeError(self._engine.failure) from error
                yield state

        self._app.router.lifespan_context = lifespan
        # A scrape comes to any one replica: it answers for all.
        self._app.router.routes.insert(0, Route("/metrics", self._exposed))
        self._app.add_middleware(_OneRequestId)
        return self._app

    async def check_health(self) -> None:
        """Raise once the engine has failed or hangs: Serve then starts another replica."""
        if not self._engine.alive:
            raise RuntimeError(self._engine.failure or "the device thread hangs")

    async def gathered(self) -> Gathered:
        """What this replica has measured so far."""
        registry: CollectorRegistry = self._app.state.service.registry
        return Gathered(self._replica, self._node, list(registry.collect()))

    async def _exposed(self, request: Request) -> Response:
        asked = self._handle.broadcast("gathered")
        try:
            answers = await asked.results_async(timeout_s=_SCRAPE_SECONDS, return_exceptions=True)
        except TimeoutError:
            _logger.warning("not all replicas tell what they measured")
            answers = [await self.gathered()]
        registry = CollectorRegistry()
        registry.register(_Merged(each for each in answers if isinstance(each, Gathered)))
        encode, media_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(encode(registry), headers={"Content-Type": media_type})


class _Merged(Collector):
    """The metrics of several replicas, told apart by labels."""

    def __init__(self, gathered: Iterable[Gathered]) -> None:
        self._families: dict[str, Metric] = {}
        for each in gathered:
            where = {"replica": each.replica, "node": each.node}
            for metric in each.metrics:
                family = self._families.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type, metric.unit)
                )
                family.samples += [
                    sample._replace(labels={**sample.labels, **where}) for sample in metric.samples
                ]

    def collect(self) -> Iterator[Metric]:
        yield from self._families.values()


class _OneRequestId:
    """ASGI middleware: Serve's proxy adds an X-Request-ID to each answer, the very same."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["X-Request-ID"]
            await send(message)

        await self._app(scope, receive, send_on)


# ------------------------------------------------------------------------------------- all of them


def application(arguments: dict[str, str]) -> serve.Application:
    """What `serve deploy` builds: the settings are the environment's, as always.

    Args:
        arguments: `replicas`, see `replicas`.

    Raises:
        ValueError: there are other arguments, or the settings are not for a cluster.
    """
    unknown = arguments.keys() - {"replicas"}
    if unknown:
        raise ValueError(f"no such argument: {', '.join(sorted(unknown))}. Accepted: replicas")
    return bind(Settings(), replicas(arguments.get("replicas", "1")))


def replicas(text: str) -> Replicas:
    """The replicas that a text asks for: `3`, or `1-3` for as many as requests need.

    Raises:
        ValueError: it is neither.
    """
    least, dash, most = text.partition("-")
    try:
        asked = Replicas(int(least), int(most) if dash else int(least))
    except ValueError:
        asked = Replicas(0, 0)
    if not 1 <= asked.least <= asked.most:
        raise ValueError(f"{text} is not a number of replicas, such as 3, nor a range such as 1-3")
    return asked


def bind(settings: Settings, asked: Replicas, **parts: Any) -> serve.Application:
    """The application to be run by Serve.

    Args:
        settings: of each replica.
        asked: how many there are.
        parts: see `Replica`.

    Raises:
        ValueError: the device of the settings is one of a machine's.
    """
    settings, needs = placed(settings)
    limit = _BESIDE * (settings.max_queue + settings.max_batch_images)
    options: dict[str, Any] = {
        "ray_actor_options": needs,
        # The engine says what is too much; Serve's own queue is for when there is no replica.
        "max_ongoing_requests": limit,
        "max_queued_requests": limit,
        "backpressure_config": {"status_code": 503, "retry_after_s": 1},
        "health_check_period_s": _HEALTH_SECONDS,
        "health_check_timeout_s": settings.heartbeat_seconds,
        # Serve waits for its requests, and then the lifespan's end for what is in the engine.
        "graceful_shutdown_timeout_s": 2 * settings.drain_seconds,
        "graceful_shutdown_wait_loop_s": 0.5,
        # A new version starts before an old one stops, where there is room for both.
        "max_surge_percent": 25 if _is_free(needs) else 0,
        "max_constructor_retry_count": _STARTS,
        # The application logs its requests itself.
        "logging_config": {"enable_access_log": False},
    }
    if asked.least == asked.most:
        options["num_replicas"] = asked.most
    else:
        options["autoscaling_config"] = {
            "min_replicas": asked.least,
            "max_replicas": asked.most,
            # One batch computes while the next one gathers.
            "target_ongoing_requests": 2 * settings.max_batch_images,
        }
    deployment = serve.deployment(serve.ingress()(Replica), name=NAME, **options)
    return deployment.bind(settings, **parts)


def deploy(address: str, settings: Settings, asked: Replicas) -> None:
    """Put the service onto a Ray cluster, or a new version in place of the one that is there.

    Returns once all replicas have started; they stay.

    Args:
        address: of the cluster, as Ray takes it: `auto`, `HOST:PORT`, `ray://HOST:PORT`.
        settings: of each replica, and where each node's proxy listens.
        asked: how many there are.

    Raises:
        ValueError: see `bind`; or the replicas do not start.
        OSError: there is no cluster.
    """
    connect(address)
    serve.start("EveryNode", {"host": settings.host, "port": settings.port})
    try:
        serve.run(bind(settings, asked), name=NAME)
    except RuntimeError as error:
        deployed = serve.status().applications[NAME].deployments
        # A replica's last words are its reason.
        reasons = [each.message.strip().rpartition("\n")[2] for each in deployed.values()]
        raise ValueError(f"the replicas do not start: {' '.join(reasons) or error}") from error


def connect(address: str) -> None:
    """Connect to a Ray cluster.

    Raises:
        OSError: there is none.
    """
    host, colon, port = address.rpartition(":")
    if colon and "://" not in address:
        # Where nobody listens Ray tries for 40 seconds, and then ends the process.
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    ray.init(address, logging_level=logging.WARNING, log_to_driver=False)


def placed(settings: Settings) -> tuple[Settings, dict[str, float]]:
    """The settings of one who computes on the cluster, and what of a node's it needs.

    Raises:
        ValueError: the device of the settings is one of a machine's.
    """
    if settings.device.startswith("cuda:"):
        raise ValueError(
            f"POSE_DEVICE={settings.device}: which GPU a replica gets is Ray's to say. "
            "Accepted: auto, cpu, cuda"
        )
    if settings.device == "cuda" or (settings.device == "auto" and _has("GPU", 1)):
        needs = {"num_gpus": 1.0, "num_cpus": float(settings.decode_threads)}
        return settings.model_copy(update={"device": "cuda"}), needs
    # What scales on CPUs is replicas: one thread where nothing is said.
    threads = settings.compute_threads or 1
    changed = {"device": "cpu", "compute_threads": threads}
    return settings.model_copy(update=changed), {"num_cpus": float(threads)}


def _has(resource: str, amount: float) -> bool:
    return bool(ray.cluster_resources().get(resource, 0) >= amount)


def _is_free(needs: dict[str, float]) -> bool:
    free = ray.available_resources()
    names = {"num_gpus": "GPU", "num_cpus": "CPU"}
    return all(free.get(names[name], 0) >= amount for name, amount in needs.items())
