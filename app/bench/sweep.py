"""The sweep: each representation, photos and load, beside the bare pipeline at the same work."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from tqdm import tqdm

from app.bench import processes
from app.bench.load import (
    Answer,
    Load,
    Requests,
    arrivals,
    closed_loop,
    in_turn,
    open_loop,
    percentiles,
)
from app.bench.photos import Photos
from app.bench.processes import Bare, Served
from app.settings import Settings

#: What must pass before a joint is known: the rest of an answer's time is the service's own.
_NEEDED = ("decode", "detect", "pose")


class TargetError(ValueError):
    """The service cannot be measured: the message says why."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is measured."""

    photos: Sequence[Photos]
    """What is sent, one kind after another."""
    representations: Sequence[str] | None = None
    """Which ones; all that the service has loaded if left out."""
    concurrencies: Sequence[int] = ()
    """Closed loops, by how many requests are kept under way."""
    rates: Sequence[float] = ()
    """Open loops, by images a second."""
    seconds: float = 5.0
    """How long each is measured, and the bare pipeline as well."""
    warm_up: float = 1.0
    """Seconds before that do not count."""
    seed: int = 0
    """Of the open loops' moments."""
    url: str | None = None
    """A running service to ask in place of an own one; its bare pipeline is not known here."""


@dataclass(frozen=True, slots=True)
class Row:
    """One load on one service: a line of the tables."""

    representation: str
    model: str
    photos: str
    concurrency: int | None
    """Requests under way in a closed loop."""
    rate: float | None
    """Images asked for in each second of an open loop."""
    images_per_second: float
    people_per_second: float
    people_per_image: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    stages_ms: dict[str, float]
    """Median over the answers' `timings_ms`."""
    beyond_ms: float | None
    """Median time of an answer that is not decoding, detecting or pose network."""
    mean_batch: dict[str, float]
    """Images in the detector's batches and crops in the pose network's, by stage."""
    errors: dict[str, int]
    """Requests without an answer, by status."""
    client_cpu: float
    """Processors that the clients took on average."""
    service_cpu: float | None
    """Processors that an own service took."""
    bare: dict[str, Any] | None
    """The bare pipeline: `batch`, `images_per_second`, `people_per_second`, `stages_ms`."""
    efficiency: float | None
    """Served people a second by the bare pipeline's, in batches of as many images as requests are
    under way, or as the service allows."""


def run(sweep: Sweep, settings: Settings) -> list[Row]:
    """Measure.

    Service and bare pipeline run in processes of their own and take turns: while the one is
    measured, the other has nothing to do.

    Args:
        sweep: what is measured.
        settings: of an own service.

    Raises:
        ProcessError: the service or the bare pipeline fails.
        TargetError: the service does not answer, or not with what is asked of it.
    """
    with ExitStack() as stack:
        bare = served = None
        url = sweep.url
        if url is None:
            bare = stack.enter_context(Bare())
            served = stack.enter_context(processes.posemux(settings.drain_seconds))
            url = served.url
        url = url.rstrip("/")
        models = _models(url, sweep, settings.credentials)
        points: list[tuple[int | None, float | None]] = [
            *((concurrency, None) for concurrency in sweep.concurrencies),
            *((None, rate) for rate in sweep.rates),
        ]
        measured = [
            (representation, photos, point)
            for representation in models
            for photos in sweep.photos
            for point in points
        ]
        rows = []
        for representation, photos, point in (bar := tqdm(measured, unit="load", disable=None)):
            bar.set_description(f"{representation}, {photos.name}")
            target = _Target(url, representation, models[representation], photos, served)
            rows.append(_measure(sweep, settings, target, *point, bare))
        return rows


@dataclass(frozen=True, slots=True)
class _Target:
    url: str
    representation: str
    model: str
    photos: Photos
    served: Served | None


def _measure(
    sweep: Sweep,
    settings: Settings,
    target: _Target,
    concurrency: int | None,
    rate: float | None,
    bare: Bare | None,
) -> Row:
    beside = None
    if bare is not None and concurrency is not None:
        batch = min(concurrency, settings.max_batch_images)
        found = bare.measure(target.model, target.photos.files, batch, sweep.seconds, sweep.warm_up)
        beside = {
            "batch": batch,
            "images_per_second": found["images"] / found["seconds"],
            "people_per_second": found["people"] / found["seconds"],
            "stages_ms": found["stages_ms"],
        }
    urls = [f"{target.url}/pose?model={target.model}"]
    requests = in_turn(urls, target.photos.read(), settings.credentials)
    _apply(sweep, requests, concurrency, rate, sweep.warm_up)
    before = _batches(target.url)
    spent = None if target.served is None else target.served.cpu_seconds
    load = _apply(sweep, requests, concurrency, rate, sweep.seconds)
    after = _batches(target.url)
    service_cpu = None
    if target.served is not None and spent is not None:
        service_cpu = (target.served.cpu_seconds - spent) / load.seconds
    return summarise(
        load,
        {"representation": target.representation, "model": target.model}
        | {"photos": target.photos.name, "concurrency": concurrency, "rate": rate},
        mean_batches(before, after),
        service_cpu,
        beside,
    )


def _apply(
    sweep: Sweep,
    requests: Requests,
    concurrency: int | None,
    rate: float | None,
    seconds: float,
) -> Load:
    if concurrency is not None:
        return asyncio.run(closed_loop(requests, concurrency, seconds))
    assert rate is not None
    return asyncio.run(open_loop(requests, arrivals(rate, seconds, sweep.seed)))


def summarise(
    load: Load,
    about: dict[str, Any],
    mean_batch: dict[str, float],
    service_cpu: float | None,
    bare: dict[str, Any] | None,
) -> Row:
    """A load's figures.

    Args:
        load: what was answered.
        about: the row's first five fields.
        mean_batch: see `Row`.
        service_cpu: see `Row`.
        bare: see `Row`.
    """
    good = load.good
    stages = list(good[0].timings) if good else []
    needed = all(stage in stages for stage in _NEEDED)
    p50, p95, p99 = percentiles(load.latencies)
    return Row(
        **about,
        images_per_second=load.images_per_second,
        people_per_second=load.people_per_second,
        people_per_image=sum(answer.people for answer in good) / len(good) if good else None,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        stages_ms={stage: _median(answer.timings[stage] for answer in good) for stage in stages},
        beyond_ms=_median(map(_beyond, good)) if needed else None,
        mean_batch=mean_batch,
        errors=load.errors,
        client_cpu=load.cpu_seconds / load.seconds,
        service_cpu=service_cpu,
        bare=bare,
        efficiency=efficiency(load.people_per_second, bare),
    )


def efficiency(people_per_second: float, bare: dict[str, Any] | None) -> float | None:
    """Served people a second by the bare pipeline's; None where it is not known or finds nobody."""
    if bare is None or not bare["people_per_second"]:
        return None
    return float(people_per_second / bare["people_per_second"])


def _beyond(answer: Answer) -> float:
    return 1000 * answer.seconds - sum(answer.timings[stage] for stage in _NEEDED)


def _median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))


# -------------------------------------------------------------------------- what the service tells


def mean_batches(
    before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]
) -> dict[str, float]:
    """Mean size of the batches between two readings of `pose_batch_size`, by stage.

    Args:
        before: sum and count of all batches, by stage.
        after: the same, later.
    """
    means = {}
    for stage, (total, count) in after.items():
        earlier = before.get(stage, (0.0, 0.0))
        if count > earlier[1]:
            means[stage] = (total - earlier[0]) / (count - earlier[1])
    return means


def _batches(url: str) -> dict[str, tuple[float, float]]:
    """Sum and count of all batches so far, by stage."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for sample in _samples(url):
        if sample.name == "pose_batch_size_sum":
            sums[sample.labels["stage"]] = sample.value
        elif sample.name == "pose_batch_size_count":
            counts[sample.labels["stage"]] = sample.value
    return {stage: (total, counts[stage]) for stage, total in sums.items()}


def _models(url: str, sweep: Sweep, credentials: Mapping[str, str]) -> dict[str, str]:
    """The model that each representation is answered with."""
    loaded = {
        sample.labels["representation"]: None
        for sample in _samples(url)
        if sample.name == "pose_model_info"
    }
    if not loaded:
        raise TargetError(f"{url}/metrics tells of no pose model: is it a posemux?")
    for name in sweep.representations or ():
        if name not in loaded:
            raise TargetError(
                f"{url} has no model of {name} loaded; accepted are {', '.join(loaded)}"
            )
    photo = sweep.photos[0].read()[0]
    return {
        name: json.loads(_ask(f"{url}/pose?representation={name}", photo, credentials))["model"]
        for name in sweep.representations or loaded
    }


def _samples(url: str) -> Iterator[Sample]:
    for family in text_string_to_metric_families(_ask(f"{url}/metrics").decode()):
        yield from family.samples


def _ask(
    url: str, photo: bytes | None = None, credentials: Mapping[str, str] | None = None
) -> bytes:
    # A proxy of the environment's is not for a service that is measured.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    headers = {} if photo is None else {"Content-Type": "application/octet-stream"}
    headers |= credentials or {}
    try:
        with opener.open(urllib.request.Request(url, photo, headers), timeout=60) as answer:
            content: bytes = answer.read()
    except urllib.error.HTTPError as error:
        raise TargetError(f"{url} answered {error.code}: is it a posemux that is ready?") from error
    except (urllib.error.URLError, OSError) as error:
        raise TargetError(f"{url} does not answer: {getattr(error, 'reason', error)}") from error
    return content
