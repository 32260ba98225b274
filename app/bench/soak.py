"""The soak: many requests, during which a service's memory, files and threads should stay."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from tqdm import tqdm

from app.bench import processes
from app.bench.load import Answer, closed_loop, in_turn
from app.bench.photos import Photos
from app.bench.processes import Child
from app.settings import Settings

#: How often a service is looked at.
_SAMPLES = 100
#: How much more memory is still the same. Files come and go with connections.
_SAME_MEMORY = 0.02
_SAME_FILES = 2

#: The rule, for people.
RULE = (
    "flat means that the median of the last fifth of the samples exceeds that of the second fifth "
    f"by no more than {_SAME_MEMORY:.0%} of memory, {_SAME_FILES} open files, and no thread"
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A service and all that it started, after so many requests."""

    requests: int
    rss_bytes: int
    open_files: int
    threads: int


@dataclass(frozen=True, slots=True)
class Soak:
    """What a service held on to."""

    samples: Sequence[Sample]
    errors: dict[str, int]
    """Requests without an answer, by status."""
    seconds: float
    flat: bool
    """Whether by `RULE` nothing grew."""
    rule: str = RULE


def run(
    photos: Sequence[Photos],
    representations: Sequence[str],
    concurrency: int,
    requests: int,
    settings: Settings,
) -> Soak:
    """Send so many requests to an own service, the photos and representations in turn.

    Raises:
        ProcessError: the service fails.
    """
    samples: list[Sample] = []
    with (
        processes.posemux(settings.drain_seconds) as served,
        tqdm(total=requests, unit="request", desc="soak", disable=None) as bar,
    ):
        step = max(requests // _SAMPLES, 1)
        answered = count(1)

        def watch(_: Answer) -> None:
            bar.update()
            if (number := next(answered)) % step == 0:
                samples.append(_look(served, number))

        urls = [f"{served.url}/pose?representation={name}" for name in representations]
        read = [photo for kind in photos for photo in kind.read()]
        sent = in_turn(urls, read, settings.credentials)
        load = asyncio.run(closed_loop(sent, concurrency, most=requests, watch=watch))
        served.check()
    return Soak(samples, load.errors, load.seconds, is_flat(samples))


def is_flat(samples: Sequence[Sample]) -> bool:
    """Whether a service has stopped growing, by `RULE`; the first fifth is warming up."""
    fifth = max(len(samples) // 5, 1)
    early, late = samples[fifth : 2 * fifth] or samples[:1], samples[-fifth:]

    def median(part: Sequence[Sample], name: str) -> float:
        return float(np.median([getattr(sample, name) for sample in part]))

    return (
        median(late, "rss_bytes") <= (1 + _SAME_MEMORY) * median(early, "rss_bytes")
        and median(late, "open_files") <= median(early, "open_files") + _SAME_FILES
        and median(late, "threads") <= median(early, "threads")
    )


def _look(child: Child, requests: int) -> Sample:
    found = child.processes
    return Sample(
        requests,
        sum(process.memory_info().rss for process in found),
        sum(process.num_fds() for process in found),
        sum(process.num_threads() for process in found),
    )
