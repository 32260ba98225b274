"""The service put together: settings, metrics, engine, routes; and how it starts and stops."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import uvicorn
from fastapi import Depends, FastAPI
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry, ProcessCollector
from starlette.middleware.cors import CORSMiddleware

import models
from app import cpus, logs
from app.api import Service, access, health, page, pose, problems, stream
from app.api import models as model_routes
from app.api.requests import RequestRecorder
from app.connection import Connection, StreamConnection
from app.detector import YoloDetector
from app.engine import Engine
from app.errors import TooManyRequestsError, UnauthorizedError
from app.keys import KeyFile, Limits
from app.metrics import Metrics
from app.pipeline import Pipeline
from app.runtime import Runtime
from app.settings import Settings
from app.sharing import Room
from app.tracing import Tracing, tracing
from models import catalogue, sources
from models.quantisation import read_ranges

_logger = logging.getLogger(__name__)

BUNDLED_DETECTOR = catalogue.WEIGHTS / "person-detector.safetensors"
#: As many as PyTorch takes by itself, or as OMP_NUM_THREADS says.
_TORCH_THREADS = torch.get_num_threads()
#: What was answered when the engine had drained may still be on its way to a slow client.
_LAST_BYTES_SECONDS = 5

_DESCRIPTION = """\
Finds people in images and returns where their joints are. Each request chooses how the network
writes a pose down: SimCC, heatmap with DARK decoding, or PCT tokens. Errors are RFC 9457 problems.
"""


def build_detector(settings: Settings, runtime: Runtime | None = None) -> YoloDetector:
    """The detector of the settings, on its device.

    Args:
        settings: which one, where.
        runtime: makes what runs it; that of the settings if left out.

    Raises:
        ValueError: the device or the runtime is not there, or weights are missing or damaged.
    """
    weights = settings.detector_weights or BUNDLED_DETECTOR
    device = _device(settings.device)
    runtime = runtime or build_runtime(settings)
    return YoloDetector.load(weights, device, settings.detector_size, runtime)


def build_runtime(settings: Settings) -> Runtime:
    """The runtime of the settings; from here on PyTorch takes no more threads than it may use.

    Raises:
        ValueError: the device is not there, or the runtime is not there or not for this device.
    """
    threads = settings.compute_threads or min(cpus.available(), _TORCH_THREADS)
    torch.set_num_threads(threads)
    return Runtime(settings.runtime, _device(settings.device), threads, settings.precision)


def build_pipeline(
    settings: Settings,
    metrics: Metrics,
    weights: Path | None = None,
    calibrated: bool = True,
    layout: str | None = None,
    as_authors: bool = False,
) -> Pipeline:
    """The detector and the pose models of the settings, on their device.

    Args:
        settings: which models, where.
        metrics: where the pipeline counts.
        weights: a weights file whose model takes the place of the settings' pose models; it goes by
            the file's name.
        calibrated: whether scores are calibrated, where the models' cards tell how.
        layout: what the weights file is of, where several fit: see `models.load`.
        as_authors: see `Pipeline`.

    Raises:
        ValueError: the device or the runtime is not there, or weights are missing or damaged.
    """
    device = _device(settings.device)
    runtime = build_runtime(settings)
    detector = build_detector(settings, runtime)
    if weights is None:
        given = settings.models
        loaded = [sources.load(source, None, settings.weights_dir) for source in given]
    else:
        given = (str(weights),)
        loaded = [models.load(layout, weights)]
    if not calibrated:
        loaded = [model.uncalibrated() for model in loaded]
    pose_models = {model.card.name: model.to(device, runtime.dtype) for model in loaded}
    estimators = {}
    for source, (name, model) in zip(given, pose_models.items(), strict=True):
        path = sources.path_of(source, settings.weights_dir)
        # Only where it is asked for: their answers are otherwise the same in every runtime.
        ranges = read_ranges(path) if settings.precision == "int8" else None
        estimators[name] = runtime.estimator(name, model, settings.max_batch_people, ranges)
    if not runtime.torch_computes:
        # What is left to PyTorch is small, and its threads, which wait at full speed for a while
        # after everything they did, would take the processor that OpenVINO computes on.
        torch.set_num_threads(1)
    return Pipeline(
        detector, pose_models, device, settings.max_batch_people, metrics, as_authors, estimators
    )


def create_app(
    settings: Settings | None = None,
    *,
    build: Callable[[Settings, Metrics], Pipeline] = build_pipeline,
    traced: Callable[[Settings, str], Tracing] = tracing,
) -> FastAPI:
    """The ASGI application; its lifespan starts the engine, and drains it in the end.

    Args:
        settings: from the environment if left out.
        build: makes the pipeline, on the engine's thread.
        traced: makes what sends traces, from the settings and this service's version.

    Raises:
        ValueError: the file of keys cannot be used, or there is nothing to send traces with, or a
            weights file of the settings cannot be used any more.
    """
    settings = settings or Settings()
    cards = {card.name: card for card in map(sources.describe, settings.models)}
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    metrics = Metrics(registry)

    def start() -> Pipeline:
        pipeline = build(settings, metrics)
        # What they cost takes a moment to count: before anybody asks GET /models for it.
        for card in (*map(models.card, catalogue.bundled()), *cards.values()):
            catalogue.complexity_of(card)
        return pipeline

    engine = Engine(
        start,
        max_queue=settings.max_queue,
        max_pixels_in_flight=settings.max_pixels_in_flight,
        max_batch_images=settings.max_batch_images,
        max_batch_people=settings.max_batch_people,
        heartbeat_seconds=settings.heartbeat_seconds,
        metrics=metrics,
    )
    keys = None if settings.api_keys_file is None else KeyFile(settings.api_keys_file)
    limits = Limits(settings.key_rate, settings.key_burst, settings.key_concurrency)
    spans = traced(settings, posemux_version())
    threads = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="images")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.drain, settings.drain_seconds)
        threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(spans.shut_down)

    # FastAPI's own /docs loads its scripts from the internet.
    app = FastAPIOffline(
        docs_url="/docs",
        redoc_url=None,
        static_url="/docs/assets",
        title="posemux",
        version=posemux_version(),
        description=_DESCRIPTION,
        license_info={"name": "AGPL-3.0-or-later", "identifier": "AGPL-3.0-or-later"},
        lifespan=lifespan,
    )
    uploads = Room(settings.max_bytes_in_flight)
    streams = Room(settings.max_streams)
    app.state.service = Service(
        settings, cards, engine, metrics, registry, threads, keys, limits, spans, uploads, streams
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-ID"],
            expose_headers=["Retry-After", "Server-Timing", "X-Request-ID"],
        )
    app.add_middleware(RequestRecorder, metrics=metrics, tracing=spans)
    problems.install(app)
    guard: dict[str, Any] = {}
    if keys is not None:
        guard["dependencies"] = [Depends(access.admitted)]
        guard["responses"] = problems.responses(UnauthorizedError, TooManyRequestsError)
    for routes in (pose, model_routes):
        app.include_router(routes.router, **guard)
    # A stream looks at keys itself: each of its frames is let in like a request.
    for routes in (health, page, stream):
        app.include_router(routes.router)
    app.mount("/page", page.PageFiles())
    return app


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves an application."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=partial(Connection, transfer_seconds=settings.transfer_seconds),  # type: ignore[arg-type]  # it is only called
        ws=partial(StreamConnection, transfer_seconds=settings.transfer_seconds),  # type: ignore[arg-type]  # likewise
        ws_max_size=settings.max_image_bytes,
        # Pictures are compressed already, and poses are small.
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_LAST_BYTES_SECONDS,
    )


def serve(
    settings: Settings, build: Callable[[Settings, Metrics], Pipeline] = build_pipeline
) -> int:
    """Serve until told to stop, or until the engine has failed for good.

    SIGTERM or SIGINT drains: new requests are answered 503 while those in flight are finished, up
    to `drain_seconds`; a second signal stops at once.

    Returns:
        The process's exit code: 0, or 1 where the engine has failed.

    Raises:
        ValueError: see `build_runtime` and `create_app`.
        WeightsError: a pose model's weights are not on this machine.
    """
    # Here too, since it takes no time: what is wrong is one line, before anything starts.
    build_runtime(settings)
    for source in settings.models:
        if not sources.is_file(source):
            catalogue.require(models.card(source), settings.weights_dir)
    logs.configure(settings.log_format, settings.log_level)
    app = create_app(settings, build=build)
    engine: Engine = app.state.service.engine
    config = server_config(app, settings)
    _Server(config, engine, settings.drain_seconds).run()
    return 0 if engine.failure is None else 1


class _Server(uvicorn.Server):
    """Keeps its door open while the engine drains, and shuts it when the engine has failed."""

    def __init__(self, config: uvicorn.Config, engine: Engine, drain_seconds: float) -> None:
        super().__init__(config)
        self._engine = engine
        self._drain_seconds = drain_seconds
        self._told = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain at the first signal, stop at the second."""
        if self._told:
            self.force_exit = self.should_exit = True
            return
        self._told = True
        _logger.info("shutting down: finishing %d images", self._engine.in_flight)
        # A signal handler must not wait.
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def _drain(self) -> None:
        self._engine.drain(self._drain_seconds)
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Every tenth of a second: whether to exit."""
        return await super().on_tick(counter) or self._engine.failure is not None


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"POSE_DEVICE={name}, but there are {torch.cuda.device_count()} GPUs")
    return device


def posemux_version() -> str:
    """The installed package's version; `unknown` in a checkout that is not installed."""
    try:
        return version("posemux")
    except PackageNotFoundError:
        return "unknown"
