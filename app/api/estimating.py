"""What a request and a stream have in common: from an encoded image to its poses, for a client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import ParamSpec, Self, TypeVar

import numpy as np
import numpy.typing as npt
from starlette.requests import HTTPConnection

from app import images
from app.api import Service
from app.errors import BusyError, InvalidParameterError
from app.pipeline import Options, Poses
from app.sharing import Room

P = ParamSpec("P")
T = TypeVar("T")
Image = npt.NDArray[np.uint8]

#: What an image goes through after it is decoded.
STAGES = ("queue", "detect", "crop", "pose", "postprocess")


@dataclass(frozen=True, slots=True)
class Answered:
    """One image with its poses."""

    image: Image
    poses: Poses
    decode_seconds: float


class Upload:
    """The room that a request's bytes take, for as long as they are kept: a context manager."""

    def __init__(self, room: Room, client: str) -> None:
        self._room = room
        self._client = client
        self._held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give it back; more than once does no harm."""
        self._room.give_back(self._client, self._held)
        self._held = 0

    def grow(self, count: int) -> None:
        """Take room for so many more bytes.

        Raises:
            BusyError: too many are kept already, for all or for this client.
        """
        if not self._room.take(self._client, count):
            raise BusyError(f"Too much at once: {self._room.used} bytes are in flight.")
        self._held += count


def refuse_repeated(connection: HTTPConnection) -> None:
    """Refuse a query in which a parameter is given more than once.

    Raises:
        InvalidParameterError: there is one.
    """
    names = [name for name, _ in connection.query_params.multi_items()]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InvalidParameterError(
            f"Given more than once: {', '.join(repeated)}. Accepted: each parameter once."
        )


def most_people(asked: int | None, most: int, why: str = "") -> int:
    """How many people are kept of an image.

    Args:
        asked: what the query says, if anything.
        most: the limit.
        why: it is not the service's own.

    Raises:
        InvalidParameterError: more are asked for than may be.
    """
    if asked is not None and asked > most:
        raise InvalidParameterError(
            f"max_people={asked} is too much{why}. Accepted: from 1 to {most}."
        )
    return asked or most


async def estimate(
    service: Service,
    client: str,
    options: Options,
    encoded: bytes,
    deadline: float,
    traced: Callable[[Mapping[str, float]], object],
) -> Answered:
    """Decode one image and have its poses estimated, as soon as a thread and the device can.

    Args:
        service: where.
        client: for whom.
        options: what is asked of it.
        encoded: the image.
        deadline: in `time.monotonic()`.
        traced: told the seconds of stages that have just ended.
    """
    image, seconds = await in_thread(service, client, _decode, service, encoded)
    traced({"decode": seconds})
    _check_boxes(options.boxes, image)
    future = service.engine.submit(image, options, client, deadline)
    # Cancelled together: a job that nobody waits for leaves the queue.
    poses = await asyncio.wrap_future(future)
    traced({stage: poses.timings[stage] for stage in STAGES})
    return Answered(image, poses, seconds)


async def in_thread(
    service: Service, client: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Call a function in one of the threads for images, as soon as it is this client's turn."""
    loop, permits = asyncio.get_running_loop(), service.permits(client)

    def done(_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits for a permit
            loop.call_soon_threadsafe(permits.release)

    call = partial(copy_context().run, function, *args, **kwargs)
    await permits.acquire()
    future = service.threads.submit(call)
    # Not before the thread is free, which it is not yet when a client goes.
    future.add_done_callback(done)
    return await asyncio.wrap_future(future)


def _decode(service: Service, data: bytes) -> tuple[Image, float]:
    begin = perf_counter()
    image = images.decode(data, service.settings.max_image_pixels)
    seconds = perf_counter() - begin
    service.metrics.stage_duration.labels("decode").observe(seconds)
    return image, seconds


def _check_boxes(boxes: npt.NDArray[np.float32] | None, image: Image) -> None:
    if boxes is None:
        return
    height, width = image.shape[:2]
    outside = (boxes[:, :2] >= (width, height)).any(1) | (boxes[:, 2:] <= 0).any(1)
    for index in np.flatnonzero(outside):
        raise InvalidParameterError(
            f"boxes[{index}] is {boxes[index].tolist()}, wholly outside of the image of "
            f"{width} x {height} pixels. Accepted: boxes that are at least partly inside."
        )


def milliseconds(timings: Mapping[str, float]) -> dict[str, float]:
    """Seconds as they are told."""
    return {stage: round(1000 * seconds, 2) for stage, seconds in timings.items()}
