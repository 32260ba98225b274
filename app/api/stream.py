"""`WS /stream`: frames in as they are taken, the poses of the newest one out.

One frame of a stream is worked on at a time, in the same batches as everybody's images. Of those
that come meanwhile the newest waits and the others are dropped: the answer to a frame that is
seconds old is worth nothing to whoever looks at a camera.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import Annotated, Any
from urllib.parse import urlsplit

import orjson
from fastapi import APIRouter, Depends, Query, WebSocket
from starlette.websockets import WebSocketDisconnect

from app import images
from app.api import Service, client_of, current_service
from app.api.access import stream_key
from app.api.estimating import (
    STAGES,
    Upload,
    estimate,
    in_thread,
    milliseconds,
    most_people,
    refuse_repeated,
)
from app.api.models import choose
from app.api.problems import count_refusal, described
from app.errors import (
    BusyError,
    DeadlineExceededError,
    DrainingError,
    ForbiddenOriginError,
    InvalidParameterError,
    PosemuxError,
    UnsupportedImageTypeError,
)
from app.pipeline import Options, Poses
from app.schemas import StreamQuery, coco_results
from models import Card

router = APIRouter()

#: Follows people: the poses of a frame and its time to those people, and who they are.
Tracker = Callable[[Poses, float], Poses]

# Of RFC 6455, 7.4.1, and of the registry that it founded.
_IDLE = 1008
_RESTARTING = 1012


@dataclass(slots=True)
class _Frame:
    """A message of the client's."""

    number: int
    """From 0: every message counts, dropped ones too, so that the client knows its own."""
    arrived: float
    """In `time.monotonic()`, when all of it was here."""
    data: bytes
    upload: Upload
    refusal: PosemuxError | None = None
    """Why it is not worked on."""


@dataclass(slots=True)
class _Newest:
    """A place for one frame: whoever comes while another one waits there takes its place."""

    dropped: int = 0
    """Since the last one was taken."""
    _frame: _Frame | None = None
    _there: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, frame: _Frame) -> bool:
        """Let a frame wait; returns whether another one was dropped for it."""
        older, self._frame = self._frame, frame
        self._there.set()
        if older is None:
            return False
        older.upload.release()
        self.dropped += 1
        return True

    async def take(self) -> tuple[_Frame, int]:
        """The newest frame, as soon as there is one, and how many were dropped before it."""
        await self._there.wait()
        self._there.clear()
        frame, self._frame = self._frame, None
        assert frame is not None
        dropped, self.dropped = self.dropped, 0
        return frame, dropped

    def clear(self) -> None:
        """Forget what waits."""
        if self._frame is not None:
            self._frame.upload.release()
            self._frame = None


@router.websocket("/stream")
async def stream(
    websocket: WebSocket,
    query: Annotated[StreamQuery, Query()],
    service: Annotated[Service, Depends(current_service)],
) -> None:
    """Estimate the poses in the newest of a client's frames, again and again.

    A message is a frame: an encoded image. The answers are JSON: docs/video.md tells field by
    field.
    """
    refuse_repeated(websocket)
    _check_origin(websocket, service)
    key = stream_key(websocket, service)
    service.engine.check_open()
    card = choose(service, query.representation, query.model)
    websocket.state.details.update(representation=card.representation, model=card.name)
    options, tracker = await _asked(service, client_of(websocket), query, card)
    async with _place(websocket, service):
        await websocket.accept()
        await _Stream(websocket, service, card, options, tracker, key).run()


def _check_origin(websocket: WebSocket, service: Service) -> None:
    """Refuse pages of other web sites: the browser leaves that to us, unlike for requests.

    Raises:
        ForbiddenOriginError: it is one that `cors_origins` does not name.
    """
    origin = websocket.headers.get("Origin")
    if origin is None or urlsplit(origin).netloc == websocket.headers.get("Host"):
        return
    if not {"*", origin} & set(service.settings.cors_origins):
        raise ForbiddenOriginError(
            "Pages of this web site may not open streams. Accepted: this service's own page, and "
            "those of the web sites in POSE_CORS_ORIGINS."
        )


async def _asked(
    service: Service, client: str, query: StreamQuery, card: Card
) -> tuple[Options, Tracker | None]:
    """What to ask of the engine for each frame, and what follows people, if anything.

    Raises:
        InvalidParameterError: too many people, or nothing to follow them with.
    """
    settings = service.settings
    min_score = settings.min_score if query.min_score is None else query.min_score
    most = most_people(query.max_people, settings.max_people)
    options = Options(card.name, min_score=min_score, max_people=most)
    if not query.track:
        if query.smooth:
            raise InvalidParameterError("smooth is for people who are followed: add track=true.")
        return options, None

    def tracking() -> tuple[Options, Tracker]:
        # Its libraries take seconds to import, and need not be there.
        from app.tracking import Tracker

        return Tracker.asking(options), Tracker(min_score, query.smooth)

    try:
        return await in_thread(service, client, tracking)
    except ModuleNotFoundError as error:
        raise InvalidParameterError(
            "track needs posemux[video], which this service does not have."
        ) from error


@asynccontextmanager
async def _place(websocket: WebSocket, service: Service) -> AsyncIterator[None]:
    """One of the places for streams.

    Raises:
        BusyError: they are taken, all or too many of them by this client.
    """
    client = client_of(websocket)
    if not service.streams.take(client, 1):
        raise BusyError(f"Too much at once: {service.streams.used} streams are open.")
    service.metrics.streams.set(service.streams.used)
    try:
        yield
    finally:
        service.streams.give_back(client, 1)
        service.metrics.streams.set(service.streams.used)


class _Stream:
    """One stream that has been let in."""

    def __init__(
        self,
        websocket: WebSocket,
        service: Service,
        card: Card,
        options: Options,
        tracker: Tracker | None,
        key: str | None,
    ) -> None:
        self._websocket = websocket
        self._service = service
        self._card = card
        self._options = options
        self._tracker = tracker
        self._key = key
        self._client = client_of(websocket)
        self._newest = _Newest()
        self._outcomes = dict.fromkeys(("answered", "dropped", "refused"), 0)

    async def run(self) -> None:
        """Receive and answer until either side closes the stream."""
        tasks = [asyncio.create_task(work) for work in (self._receive(), self._answer_all())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except WebSocketDisconnect:
            pass  # while it was being answered
        finally:
            for task in tasks:
                task.cancel()
            # What they hold is given back before the place of this stream is.
            await asyncio.gather(*tasks, return_exceptions=True)
            self._newest.clear()
            self._websocket.state.details.update(self._outcomes)

    async def _receive(self) -> None:
        """Take what comes, at once: nothing newer than what is here waits in the network."""
        patience = self._service.settings.transfer_seconds
        for number in count():
            try:
                async with asyncio.timeout(patience):
                    message = await self._websocket.receive()
            except TimeoutError:
                reason = f"There was no frame within {patience:g} seconds."
                await self._websocket.close(_IDLE, reason)
                return
            if message["type"] == "websocket.disconnect":
                return
            if self._newest.put(self._frame(number, message)):
                self._count("dropped")

    def _frame(self, number: int, message: Mapping[str, Any]) -> _Frame:
        data = message.get("bytes")
        frame = _Frame(number, monotonic(), data or b"", self._room())
        if data is None:
            frame.refusal = UnsupportedImageTypeError(
                f"A frame is a binary message: {images.ACCEPTED}. This one is text."
            )
            return frame
        try:
            frame.upload.grow(len(data))
        except BusyError as error:
            frame.data, frame.refusal = b"", error
        return frame

    def _room(self) -> Upload:
        return Upload(self._service.uploads, self._client)

    async def _answer_all(self) -> None:
        while True:
            frame, dropped = await self._newest.take()
            with frame.upload:
                try:
                    told = await self._answer(frame)
                except DrainingError as error:
                    await self._websocket.close(_RESTARTING, error.detail)
                    return
                except PosemuxError as error:
                    count_refusal(self._websocket, error)
                    self._count("refused", error.status)
                    told = {"problem": described(self._websocket, error)}
                    if error.retry_after is not None:
                        told["retry_after"] = error.retry_after
                else:
                    self._count("answered", 200)
            body = orjson.dumps({"frame": frame.number, "dropped": dropped, **told})
            await self._websocket.send_text(body.decode())
            self._service.metrics.stream_delay.observe(monotonic() - frame.arrived)

    async def _answer(self, frame: _Frame) -> dict[str, Any]:
        """The poses in a frame, as they are told.

        Raises:
            PosemuxError: what POST /pose would answer to it.
        """
        if frame.refusal is not None:
            raise frame.refusal
        service, client = self._service, self._client
        begin = monotonic()
        deadline = frame.arrived + service.settings.deadline_seconds
        try:
            async with asyncio.timeout(deadline - begin):
                with self._admitted():
                    width, height = await in_thread(
                        service, client, images.size, frame.data, service.settings.max_image_pixels
                    )
                    with service.engine.reserve([width * height], client, deadline):
                        answered = await estimate(
                            *(service, client, self._options, frame.data, deadline),
                            traced=lambda _: None,
                        )
                        poses = answered.poses
                        if self._tracker is not None:
                            poses = await in_thread(
                                service, client, self._tracker, poses, frame.arrived
                            )
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"There was no answer within {service.settings.deadline_seconds:g} seconds."
            ) from error
        height, width = answered.image.shape[:2]
        timings = {
            "wait": begin - frame.arrived,
            "decode": answered.decode_seconds,
            **{stage: poses.timings[stage] for stage in STAGES},
            "total": monotonic() - frame.arrived,
        }
        return {
            "representation": self._card.representation,
            "model": self._card.name,
            "width": width,
            "height": height,
            "predictions": coco_results(frame.number, poses),
            "timings_ms": milliseconds(timings),
        }

    def _admitted(self) -> AbstractContextManager[None]:
        if self._key is None:
            return nullcontext()
        return self._service.limits.admit(self._key)

    def _count(self, outcome: str, status: int | None = None) -> None:
        self._outcomes[outcome] += 1
        metrics = self._service.metrics
        metrics.stream_frames.labels(outcome).inc()
        if self._key is not None and status is not None:
            metrics.key_requests.labels(self._key, str(status)).inc()
