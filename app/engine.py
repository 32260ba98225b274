"""The engine: a bounded queue and the one thread that touches the device.

As soon as the device is idle the thread takes what waits, so batches are as large as the load makes
them and nobody waits for a batch to fill; of what goes round on a busy device it takes half, while
the other half's answers go out. Clients take turns, and none gets all of the room. Knows no HTTP.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from time import monotonic
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from app.errors import (
    BusyError,
    DeadlineExceededError,
    DrainingError,
    InferenceError,
    NotReadyError,
    PosemuxError,
)
from app.metrics import Metrics
from app.pipeline import Options, Pipeline, Poses
from app.sharing import Room, Turns

_logger = logging.getLogger(__name__)

#: How often an idle device thread shows that it lives, in seconds.
_IDLE_BEAT = 1.0
#: How much a new batch counts in the mean time for an image.
_NEWEST = 0.2


@dataclass(slots=True, eq=False)
class _Job:
    image: npt.NDArray[np.uint8]
    options: Options
    deadline: float
    future: Future[Poses]
    queued_at: float
    waited: float = 0.0
    context: Context = field(default_factory=copy_context)
    """Whose it is: what is logged about it names the request."""


class Reservation:
    """Room for a request, from before it is decoded until it is answered: a context manager."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give the room back; more than once does no harm."""
        release, self._release = self._release, None
        if release is not None:
            release()


class Engine:
    """Runs a pipeline on one thread for many clients.

    Every public method may be called from any thread.

    Args:
        build: makes the pipeline; called on the device thread.
        max_queue: images that may wait for the device.
        max_pixels_in_flight: of all images between `reserve` and the reservation's end. A request
            that comes alone is let in whatever its size: that limit is not the engine's.
        max_batch_images: images in one call of the pipeline.
        max_batch_people: a call gets no more images once so many crops are known of those it has:
            somebody else's few people do not wait for all of them.
        heartbeat_seconds: a device thread silent for longer, one batch included, counts as dead.
        metrics: where queue, failures and readiness are shown.
        on_fatal: called on the device thread with the reason once it has failed for good.
    """

    def __init__(
        self,
        build: Callable[[], Pipeline],
        *,
        max_queue: int,
        max_pixels_in_flight: int,
        max_batch_images: int,
        max_batch_people: int,
        heartbeat_seconds: float,
        metrics: Metrics,
        on_fatal: Callable[[str], object] | None = None,
    ) -> None:
        self._build = build
        self._max_queue = max_queue
        self._max_batch_images = max_batch_images
        self._max_batch_people = max_batch_people
        self._heartbeat_seconds = heartbeat_seconds
        self._metrics = metrics
        self._on_fatal = on_fatal
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._heartbeat = monotonic()
        self._seconds_per_image = 0.0
        self._warm_up_seconds: Mapping[str, float] = {}

        # All below is guarded by the condition, which is notified whenever any of it changes.
        self._changed = threading.Condition()
        self._queue: Turns[_Job] = Turns()
        self._running: list[_Job] = []
        self._images = Room(max_queue + max_batch_images)
        self._pixels = Room(max_pixels_in_flight)
        self._warm = False
        self._draining = False
        self._stopping = False
        self._failure: str | None = None

        # Asked for when it is read: a device thread that hangs tells nobody so.
        metrics.ready.set_function(lambda: self.ready and self.alive)

    # ----------------------------------------------------------------------------- any thread

    def start(self) -> None:
        """Start the device thread: it builds and warms up the pipeline, then is ready."""
        self._thread.start()

    def wait_until_ready(self) -> None:
        """Wait until the pipeline is up.

        Raises:
            NotReadyError: it has failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._warm or self._failure is not None)
            self._check_up()

    def check_open(self) -> None:
        """See whether new images are taken.

        Raises:
            DrainingError: the service is going down.
            NotReadyError: the pipeline is not up yet, or has failed.
        """
        self._check_up()
        if self._draining:
            raise DrainingError("The service is shutting down.")

    def reserve(self, pixels: Sequence[int], client: str, deadline: float) -> Reservation:
        """Take room for a request's images before they are decoded.

        Args:
            pixels: each image's width times its height.
            client: who asks, so that nobody takes all of the room.
            deadline: in `time.monotonic()`.

        Raises:
            BusyError: too many images or pixels are in flight, for all or for this client, or they
                would take until the deadline.
            DrainingError: the service is going down.
            NotReadyError: the pipeline is not up yet, or has failed.
        """
        with self._changed:
            self.check_open()
            if monotonic() + self._seconds_until_answered(client, len(pixels)) > deadline:
                raise self._busy(f"{self._images.used} images are in flight: it would be too late")
            if not self._images.take(client, len(pixels)):
                raise self._busy(f"{self._images.used} images are in flight")
            if not self._pixels.take(client, sum(pixels)):
                self._images.give_back(client, len(pixels))
                raise self._busy(f"{self._pixels.used} pixels are in flight")
            self._metrics.in_flight.set(self._images.used)
        return Reservation(lambda: self._release(pixels, client))

    def submit(
        self, image: npt.NDArray[np.uint8], options: Options, client: str, deadline: float
    ) -> Future[Poses]:
        """Queue an image.

        A cancelled future drops the job if it still waits. While the engine drains, images that
        hold a reservation are still taken: they have been let in.

        Args:
            image: `(H, W, 3)` uint8 RGB.
            options: what is asked of it.
            client: who asks: those whose images wait take turns.
            deadline: in `time.monotonic()`; a job that still waits then fails.

        Returns:
            The answer to come, or `DeadlineExceededError`, `InferenceError`, `DrainingError`.

        Raises:
            BusyError: the queue is full.
            DrainingError: the service is going down.
            NotReadyError: the pipeline is not up yet, or has failed.
        """
        job = _Job(image, options, deadline, Future(), monotonic())
        with self._changed:
            self._check_up()
            if self._stopping or (self._draining and not self._images.used):
                raise DrainingError("The service is shutting down.")
            if len(self._queue) >= self._max_queue:
                self._drop_cancelled()
            if len(self._queue) >= self._max_queue:
                raise self._busy(f"{len(self._queue)} images wait")
            self._queue.append(client, job)
            self._metrics.queue_depth.set(len(self._queue))
            self._changed.notify_all()
        return job.future

    def drain(self, timeout: float) -> bool:
        """Take nothing new, finish what was let in, then stop the device thread.

        Args:
            timeout: seconds after which what still waits fails with `DrainingError`.

        Returns:
            Whether everything was finished.
        """
        end = monotonic() + timeout
        with self._changed:
            self._draining = True
            finished = self._changed.wait_for(self._is_idle, timeout) and self._failure is None
            self._stopping = True
            abandoned = self._take(len(self._queue))
            self._changed.notify_all()
        _fail(abandoned, DrainingError, "The service is shutting down.")
        if self._thread.is_alive():
            self._thread.join(max(end - monotonic(), 0))
        return finished

    @property
    def ready(self) -> bool:
        """Whether new images are taken."""
        return self._warm and not self._draining and self._failure is None

    @property
    def alive(self) -> bool:
        """Whether the device thread lives, has not failed, and was heard of lately.

        Building and warming up may take as long as they take: meanwhile the engine is alive but not
        ready.
        """
        if not self._thread.is_alive() or self._failure is not None:
            return False
        return not self._warm or monotonic() - self._heartbeat <= self._heartbeat_seconds

    @property
    def failure(self) -> str | None:
        """Why the device thread has failed for good, if it has."""
        return self._failure

    @property
    def warm_up_seconds(self) -> Mapping[str, float]:
        """What one person took by each pose model at the start; empty until it is warm."""
        return self._warm_up_seconds

    @property
    def queue_depth(self) -> int:
        """Images that wait for the device."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Images let in and not yet answered, those being decoded included."""
        return self._images.used

    def _check_up(self) -> None:
        if self._failure is not None:
            raise NotReadyError("The engine has failed; the service is going down.")
        if not self._warm:
            raise NotReadyError("The models are still being loaded.")

    def _seconds_until_answered(self, client: str, images: int) -> float:
        """An estimate for a request that comes now."""
        if not self._images.used:
            return 0  # Whatever was measured once, an idle engine takes anything and learns of it.
        ahead = self._images.before(client, images) + images - 1
        last_batch = min(self._images.used + images, self._max_batch_images)
        return (ahead + last_batch) * self._seconds_per_image

    def _busy(self, what: str) -> BusyError:
        ahead = max(self._images.used, len(self._queue) + len(self._running))
        retry_after = max(math.ceil(ahead * self._seconds_per_image), 1)
        return BusyError(f"Too much at once: {what}.", retry_after=retry_after)

    def _release(self, pixels: Sequence[int], client: str) -> None:
        with self._changed:
            self._images.give_back(client, len(pixels))
            self._pixels.give_back(client, sum(pixels))
            self._metrics.in_flight.set(self._images.used)
            self._changed.notify_all()

    def _is_idle(self) -> bool:
        if self._failure is not None:
            return True
        return not (self._queue or self._running or self._images.used)

    def _drop_cancelled(self) -> None:
        waiting, self._queue = self._queue, Turns()
        for client, job in waiting:
            if not job.future.cancelled():
                self._queue.append(client, job)

    def _take(self, most: int, crops: float = math.inf) -> list[_Job]:
        """Take jobs out of the queue; those cancelled meanwhile vanish."""
        taken: list[_Job] = []
        while self._queue and len(taken) < most and crops > 0:
            job = self._queue.popleft()
            if job.future.set_running_or_notify_cancel():
                taken.append(job)
                crops -= job.options.crops
        self._metrics.queue_depth.set(len(self._queue))
        return taken

    # -------------------------------------------------------------------------- device thread

    def _run(self) -> None:
        try:
            pipeline = self._build()
            self._warm_up_seconds = pipeline.warm_up()
            with self._changed:
                self._warm = True
                self._changed.notify_all()
            _logger.info("ready")
            while self._next_batch():
                self._answer(pipeline)
        except BaseException as error:
            # Whatever ended this thread, nobody may be left waiting for it.
            self._die(error)

    def _next_batch(self) -> bool:
        """Wait for jobs and make them the running ones; false once the engine is to stop."""
        while True:
            with self._changed:
                answered = len(self._running)
                self._running = []
                self._changed.notify_all()
                self._heartbeat = monotonic()
                while not self._queue and not self._stopping:
                    answered = 0
                    self._changed.wait(_IDLE_BEAT)
                    self._heartbeat = monotonic()
                if not self._queue:
                    return False
                now = monotonic()
                most = self._max_batch_images
                if answered:
                    # Those just answered are likely to ask again. Taking all that wait would go on
                    # for ever with a batch of one, then of all others: the dearest way to share.
                    most = min(most, math.ceil((len(self._queue) + answered) / 2))
                taken = self._take(most, self._max_batch_people)
                self._running = [job for job in taken if job.deadline > now]
            late = [job for job in taken if job.deadline <= now]
            _fail(late, DeadlineExceededError, "The deadline passed before the device was free.")
            for job in self._running:
                job.waited = now - job.queued_at
                self._metrics.stage_duration.labels("queue").observe(job.waited)
            if self._running:
                return True

    def _answer(self, pipeline: Pipeline) -> None:
        begin = monotonic()
        self._compute(pipeline, self._running)
        latest = (monotonic() - begin) / len(self._running)
        if self._seconds_per_image:
            latest = _NEWEST * latest + (1 - _NEWEST) * self._seconds_per_image
        self._seconds_per_image = latest

    def _compute(self, pipeline: Pipeline, jobs: Sequence[_Job]) -> None:
        """Answer jobs together or, where that fails, in smaller parts, so that each fails alone."""
        self._heartbeat = monotonic()
        try:
            answers = pipeline([job.image for job in jobs], [job.options for job in jobs])
            pairs = list(zip(jobs, answers, strict=True))
        except Exception as error:
            self._metrics.batch_failures.inc()
            out_of_memory = _is_out_of_memory(error)
            if not out_of_memory and _is_sticky(error):
                raise
            context = jobs[0].context if len(jobs) == 1 else copy_context()
            context.run(_logger.warning, "a batch of %d images failed", len(jobs), exc_info=error)
            if len(jobs) == 1:
                told = _public(error)
                self._metrics.failed_images.labels(told.type.rpartition("/")[2]).inc()
                jobs[0].future.set_exception(told)
                return
            part = (len(jobs) + 1) // 2 if out_of_memory else 1
        else:
            for job, poses in pairs:
                timings = {**poses.timings, "queue": job.waited}
                job.future.set_result(replace(poses, timings=timings))
            return
        # Only out here have the failed attempt's tensors gone with its traceback.
        if out_of_memory:
            torch.cuda.empty_cache()
        for start in range(0, len(jobs), part):
            self._compute(pipeline, jobs[start : start + part])

    def _die(self, error: BaseException) -> None:
        reason = f"{type(error).__name__}: {error}"
        # What is wrong with weights or settings is one line: where it was noticed helps nobody.
        mendable = not self._warm and isinstance(error, ValueError | OSError)
        _logger.critical(
            "the device thread has failed: %s", reason, exc_info=None if mendable else error
        )
        with self._changed:
            self._failure = reason
            doomed = [job for job in self._running if not job.future.done()]
            self._running = []
            doomed += self._take(len(self._queue))
            self._changed.notify_all()
        _fail(doomed, InferenceError, "The engine has failed; the service is going down.")
        if self._on_fatal is not None:
            self._on_fatal(reason)


def _fail(jobs: Iterable[_Job], kind: type[PosemuxError], detail: str) -> None:
    for job in jobs:
        # One exception each: the client's thread will add its own traceback to it.
        job.future.set_exception(kind(detail))


def _public(error: Exception) -> PosemuxError:
    """What a client may read of a failure: not its text, which can hold paths and addresses."""
    if isinstance(error, PosemuxError):
        # The traceback would keep the attempt's tensors for as long as the client keeps the answer.
        return error.with_traceback(None)
    if _is_out_of_memory(error):
        return InferenceError("The device's memory is too small for this image and its people.")
    return InferenceError("The image could not be processed.")


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def _is_sticky(error: Exception) -> bool:
    """Whether the device is lost to this process: every later call would fail as well."""
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
