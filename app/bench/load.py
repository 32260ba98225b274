"""The load: many clients in one thread, who send photos and remember how long answers took.

A closed loop keeps so many requests under way: each client sends its next one when it has been
answered, so a slow service is asked less often. An open loop sends at moments drawn beforehand,
whatever the service does, as a crowd of strangers would; an answer's time counts from the moment
when its request should have been sent, so that a stall is felt by all who come during it and not
only by the one who is sent before it ("coordinated omission", which closed loops suffer from).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, cycle, islice

import aiohttp
import numpy as np
import numpy.typing as npt
import orjson

#: A client who waits longer gives up; a service answers 504 long before.
_PATIENCE = aiohttp.ClientTimeout(total=60)
#: An unused connection is closed before the service, after five seconds, closes it.
_KEEP_ALIVE = 2.0
#: A client who was refused waits so long before it asks again, in seconds.
_AFTER_ERROR = 0.1

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's outcome."""

    status: str
    """The HTTP status, or `timeout`, or `connection`."""
    seconds: float
    """From when it was, or should have been, sent to the answer's last byte."""
    people: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    """The service's own `timings_ms`, where it has some."""

    @property
    def good(self) -> bool:
        """Whether the poses came."""
        return self.status == "200"


@dataclass(frozen=True, slots=True)
class Load:
    """All answers of a run."""

    answers: Sequence[Answer]
    seconds: float
    """From the first request to the last answer."""
    cpu_seconds: float
    """What the clients themselves took of the processor, which the service cannot have had."""

    @property
    def good(self) -> list[Answer]:
        """The answers with poses."""
        return [answer for answer in self.answers if answer.good]

    @property
    def latencies(self) -> Seconds:
        """Seconds of each good answer."""
        return np.array([answer.seconds for answer in self.good])

    @property
    def images_per_second(self) -> float:
        """Good answers a second."""
        return len(self.good) / self.seconds

    @property
    def people_per_second(self) -> float:
        """People in good answers a second."""
        return sum(answer.people for answer in self.good) / self.seconds

    @property
    def errors(self) -> dict[str, int]:
        """How many answers were none, by status."""
        return dict(Counter(answer.status for answer in self.answers if not answer.good))


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, and where to."""

    url: str
    body: bytes
    media_type: str = "application/octet-stream"
    credentials: Mapping[str, str] = field(default_factory=dict)
    """Headers that a service wants to see, beside."""


#: What a run sends, one after another.
Requests = Iterator[Request]
#: Called with each answer.
Watch = Callable[[Answer], object]


def in_turn(
    urls: Sequence[str], photos: Sequence[bytes], credentials: Mapping[str, str] | None = None
) -> Requests:
    """Every photo to every URL, over and over."""
    headers = credentials or {}
    return cycle([Request(url, photo, credentials=headers) for photo in photos for url in urls])


def percentiles(latencies: Seconds) -> tuple[float | None, float | None, float | None]:
    """Milliseconds within which 50, 95 and 99 % of the answers came; None where none came."""
    if not len(latencies):
        return None, None, None
    half, most, nearly_all = (1000 * np.percentile(latencies, [50, 95, 99])).tolist()
    return half, most, nearly_all


def arrivals(rate: float, seconds: float, seed: int) -> Seconds:
    """When strangers come: moments of a Poisson process of `rate` a second, sorted, from 0 on."""
    random = np.random.default_rng(seed)
    # Six standard deviations more than are expected: enough but once in a thousand million times.
    most = math.ceil(rate * seconds + 6 * math.sqrt(rate * seconds) + 10)
    moments = np.cumsum(random.exponential(1 / rate, most))
    return moments[moments < seconds]


async def closed_loop(
    requests: Requests,
    concurrency: int,
    seconds: float = math.inf,
    most: int | None = None,
    watch: Watch | None = None,
) -> Load:
    """Keep so many requests under way.

    Args:
        requests: what is sent.
        concurrency: how many clients there are.
        seconds: nothing is sent after so long, but for each client's first request.
        most: nothing is sent after so many requests.
        watch: called with each answer.
    """
    turns = islice(count(), most)

    async def run(http: aiohttp.ClientSession, begin: float) -> list[Answer]:
        answers = []

        async def client() -> None:
            for _ in turns:
                answer = await _send(http, next(requests), time.perf_counter())
                answers.append(answer)
                if watch is not None:
                    watch(answer)
                if time.perf_counter() - begin >= seconds:
                    break
                if not answer.good:
                    await asyncio.sleep(_AFTER_ERROR)

        await asyncio.gather(*(client() for _ in range(concurrency)))
        return answers

    return await _measured(run)


async def open_loop(requests: Requests, moments: Seconds, watch: Watch | None = None) -> Load:
    """Send a request at each of these moments, in seconds, however many are under way."""

    async def run(http: aiohttp.ClientSession, begin: float) -> list[Answer]:
        async def stranger(moment: float) -> Answer:
            due = begin + moment
            await asyncio.sleep(due - time.perf_counter())
            answer = await _send(http, next(requests), due)
            if watch is not None:
                watch(answer)
            return answer

        return await asyncio.gather(*(stranger(moment) for moment in moments.tolist()))

    return await _measured(run)


async def _measured(
    run: Callable[[aiohttp.ClientSession, float], Awaitable[list[Answer]]],
) -> Load:
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE)
    async with aiohttp.ClientSession(connector=connector, timeout=_PATIENCE) as http:
        begin, cpu = time.perf_counter(), time.process_time()
        answers = await run(http, begin)
        return Load(answers, time.perf_counter() - begin, time.process_time() - cpu)


async def _send(http: aiohttp.ClientSession, request: Request, begin: float) -> Answer:
    try:
        headers = {"Content-Type": request.media_type, **request.credentials}
        async with http.post(request.url, data=request.body, headers=headers) as response:
            body = await response.read()
    except TimeoutError:
        return Answer("timeout", time.perf_counter() - begin)
    except aiohttp.ClientError:
        return Answer("connection", time.perf_counter() - begin)
    seconds = time.perf_counter() - begin
    if response.status != 200:
        return Answer(str(response.status), seconds)
    found = orjson.loads(body)
    return Answer("200", seconds, len(found["predictions"]), found.get("timings_ms", {}))
