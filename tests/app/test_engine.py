import threading
import time
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry

import app.engine
from app.engine import Engine
from app.errors import (
    BusyError,
    DeadlineExceededError,
    DrainingError,
    InferenceError,
    NotReadyError,
)
from app.metrics import Metrics
from app.pipeline import Options, Poses

PATIENCE = 10.0
"""Seconds after which a test gives up; nothing here is ever meant to take that long."""
OPTIONS = Options("model")


class Echo:
    """A pipeline whose answer is the image's first byte; a test says when and how it fails."""

    def __init__(self):
        self.batches = []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Semaphore(0)
        self.failures = {}
        self.largest = None

    def warm_up(self):
        pass

    def __call__(self, images, options):
        batch = [int(image.flat[0]) for image in images]
        self.batches.append(batch)
        self.entered.release()
        assert self.go.wait(PATIENCE)
        if self.largest is not None and len(batch) > self.largest:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        for number in batch:
            if number in self.failures:
                raise self.failures[number]
        return [answer(number) for number in batch]

    def hold(self):
        self.go.clear()

    def wait_until_entered(self):
        assert self.entered.acquire(timeout=PATIENCE)


def answer(number):
    empty = np.empty((0, 4), np.float32), np.empty(0, np.float32)
    return Poses(str(number), *empty, np.empty((0, 17, 3), np.float32), {"pose": 0.001}, empty[1])


def image_of(number):
    return np.full((1, 1, 3), number, np.uint8)


class Fixture:
    """An engine, the pipeline in it, and what came out of it."""

    def __init__(self, **settings):
        self.pipeline = Echo()
        self.registry = CollectorRegistry()
        self.fatal = []
        arguments = {
            "build": lambda: self.pipeline,
            "max_queue": 64,
            "max_pixels_in_flight": 1000,
            "max_batch_images": 8,
            "max_batch_people": 64,
            "heartbeat_seconds": 30.0,
            "metrics": Metrics(self.registry),
            "on_fatal": self.fatal.append,
        }
        self.engine = Engine(**{**arguments, **settings})

    def start(self):
        self.engine.start()
        wait_for(self.engine, lambda: self.engine.ready or self.engine.failure is not None)
        return self

    def submit(self, number, seconds=PATIENCE, client="a", options=OPTIONS):
        return self.engine.submit(image_of(number), options, client, time.monotonic() + seconds)

    def reserve(self, *pixels, client="a", seconds=PATIENCE):
        return self.engine.reserve(pixels, client, time.monotonic() + seconds)

    def occupy(self):
        """Keep the device thread busy with a first job, so that others queue up behind it."""
        self.pipeline.hold()
        first = self.submit(255)
        self.pipeline.wait_until_entered()
        return first

    def value(self, name, **labels):
        return self.registry.get_sample_value(name, labels)


def wait_for(engine, condition):
    with engine._changed:
        assert engine._changed.wait_for(condition, PATIENCE)


@pytest.fixture
def make():
    made = []

    def make(**settings):
        made.append(Fixture(**settings))
        return made[-1]

    yield make
    for fixture in made:
        fixture.pipeline.go.set()
        fixture.engine.drain(PATIENCE)


def result(future):
    return future.result(PATIENCE)


def test_clients_on_many_threads_get_their_own_answers(make):
    running = make().start()
    numbers = range(64)
    barrier = threading.Barrier(len(numbers))

    def client(number):
        barrier.wait(PATIENCE)
        return [result(running.submit(number)).model for _ in range(5)]

    with ThreadPoolExecutor(len(numbers)) as clients:
        answers = list(clients.map(client, numbers))

    assert answers == [[str(number)] * 5 for number in numbers]
    assert sum(map(len, running.pipeline.batches)) == 5 * 64


def test_it_takes_what_waits_as_soon_as_it_is_idle(make):
    running = make().start()
    first = running.occupy()
    futures = [running.submit(number) for number in range(10)]
    assert running.engine.queue_depth == running.value("pose_queue_depth") == 10
    running.pipeline.go.set()
    assert [result(future).model for future in futures] == [str(number) for number in range(10)]
    assert result(first).model == "255"
    assert running.pipeline.batches == [[255], list(range(6)), [6, 7, 8, 9]]
    assert running.engine.queue_depth == running.value("pose_queue_depth") == 0


def test_a_batch_has_no_more_images_than_it_may(make):
    running = make(max_batch_images=3).start()
    running.occupy()
    futures = [running.submit(number) for number in range(7)]
    running.pipeline.go.set()
    for future in futures:
        result(future)
    assert running.pipeline.batches == [[255], [0, 1, 2], [3, 4, 5], [6]]


def test_clients_that_ask_again_share_two_batches_equally(make):
    """Not one batch for one of them, and then one for all the others."""

    class Returning(Echo):
        """While a batch is computed, those of the one before ask again."""

        def __call__(self, images, options):
            if 1 < len(self.batches) < 6:
                futures.extend(running.submit(number) for number in self.batches[-1])
            return super().__call__(images, options)

    running = make()
    futures = []
    running.pipeline = Returning()
    running.start()
    running.occupy()
    futures += [running.submit(number) for number in range(8)]
    running.pipeline.go.set()
    while futures:
        result(futures.pop())
    assert [len(batch) for batch in running.pipeline.batches[:6]] == [1, 5, 3, 4, 4, 4]


def test_the_time_in_the_queue_is_told(make):
    running = make().start()
    running.occupy()
    waiting = running.submit(1)
    running.pipeline.go.set()
    timings = result(waiting).timings
    assert timings["queue"] > 0
    assert timings["pose"] == 0.001
    assert running.value("pose_stage_duration_seconds_count", stage="queue") == 2


def test_one_poisoned_image_fails_alone(make):
    running = make().start()
    running.pipeline.failures = {3: ValueError("/secret/path")}
    running.occupy()
    futures = [running.submit(number) for number in range(6)]
    running.pipeline.go.set()
    with pytest.raises(InferenceError) as caught:
        result(futures.pop(3))
    assert "secret" not in str(caught.value)
    assert [result(future).model for future in futures] == ["0", "1", "2", "4", "5"]
    assert running.pipeline.batches[1:] == [[0, 1, 2, 3], [0], [1], [2], [3], [4, 5]]
    assert running.value("pose_batch_failures_total") == 2
    assert running.engine.alive
    assert running.fatal == []


def test_an_error_meant_for_the_client_reaches_it_as_it_is(make):
    running = make().start()
    error = running.pipeline.failures[7] = InferenceError("not finite")
    with pytest.raises(InferenceError) as caught:
        result(running.submit(7))
    assert caught.value is error


def test_a_pipeline_that_returns_too_few_answers_fails_the_job(make):
    class Forgetful(Echo):
        def __call__(self, images, options):
            return []

    forgetful = Forgetful()
    running = make(build=lambda: forgetful).start()
    with pytest.raises(InferenceError):
        result(running.submit(1))


def test_out_of_memory_halves_the_batch(make):
    running = make(max_batch_images=4).start()
    running.pipeline.largest = 2
    running.occupy()
    futures = [running.submit(number) for number in range(8)]
    running.pipeline.go.set()
    assert [result(future).model for future in futures] == [str(number) for number in range(8)]
    assert [len(batch) for batch in running.pipeline.batches[1:]] == [4, 2, 2, 4, 2, 2]
    assert running.engine.alive


def test_an_image_too_large_for_the_device_says_so(make):
    running = make().start()
    running.pipeline.largest = 0
    with pytest.raises(InferenceError, match="memory"):
        result(running.submit(1))
    assert running.engine.alive


def test_cancelled_jobs_are_dropped(make):
    running = make().start()
    running.occupy()
    futures = [running.submit(number) for number in range(3)]
    assert futures[1].cancel()
    running.pipeline.go.set()
    assert [result(future).model for future in (futures[0], futures[2])] == ["0", "2"]
    with pytest.raises(CancelledError):
        result(futures[1])
    assert running.pipeline.batches == [[255], [0, 2]]


def test_a_running_job_cannot_be_cancelled_and_harms_nobody(make):
    running = make().start()
    first = running.occupy()
    assert not first.cancel()
    running.pipeline.go.set()
    assert result(first).model == "255"


def test_late_jobs_fail_and_the_others_are_answered(make):
    running = make().start()
    running.occupy()
    late, good = running.submit(1, seconds=0), running.submit(2)
    running.pipeline.go.set()
    with pytest.raises(DeadlineExceededError):
        result(late)
    assert result(good).model == "2"
    assert running.pipeline.batches == [[255], [2]]


def test_a_full_queue_says_when_to_come_back(make):
    running = make(max_queue=2).start()
    running.occupy()
    running.engine._seconds_per_image = 2.5
    waiting = [running.submit(1), running.submit(2)]
    with pytest.raises(BusyError) as caught:
        running.submit(3)
    assert caught.value.retry_after == 8  # two wait, one runs, 2.5 s each
    assert waiting[0].cancel()
    replacement = running.submit(4)
    running.pipeline.go.set()
    assert [result(future).model for future in (waiting[1], replacement)] == ["2", "4"]


def test_the_first_ones_to_be_refused_come_back_in_a_second(make):
    running = make(max_queue=1).start()
    running.occupy()
    running.submit(1)
    with pytest.raises(BusyError) as caught:
        running.submit(2)
    assert caught.value.retry_after == 1


def test_reservations_bound_the_pixels_in_flight(make):
    running = make(max_pixels_in_flight=1000).start()
    engine = running.engine
    with running.reserve(600):
        with pytest.raises(BusyError, match="600 pixels"):
            running.reserve(401, client="b")
        with running.reserve(400, client="b"):
            assert engine.in_flight == running.value("pose_in_flight") == 2
    assert engine.in_flight == running.value("pose_in_flight") == 0
    alone = running.reserve(5000)  # whether one image is too large is not the engine's to say
    with pytest.raises(BusyError):
        running.reserve(1, client="b")
    alone.release()
    alone.release()
    with running.reserve(500, 500):
        assert engine.in_flight == 2


def test_reservations_bound_the_images_in_flight(make):
    running = make(max_queue=2, max_batch_images=1).start()
    held = [running.reserve(1, client=client) for client in "abc"]
    with pytest.raises(BusyError, match="3 images"):
        running.reserve(1, client="d")
    held.pop().release()
    held.append(running.reserve(1, client="d"))
    for reservation in held:
        reservation.release()


def test_a_request_is_let_in_whole_or_not_at_all(make):
    running = make(max_queue=3, max_batch_images=1, max_pixels_in_flight=100).start()
    with running.reserve(10, 10):
        for pixels in ([1] * 3, [50, 50]):
            with pytest.raises(BusyError):
                running.reserve(*pixels, client="b")
        assert running.engine.in_flight == 2
    assert running.engine.in_flight == 0
    with running.reserve(50, 50):
        assert running.engine.in_flight == 2


def test_one_client_leaves_room_for_others(make):
    running = make(max_queue=64, max_batch_images=8, max_pixels_in_flight=900).start()
    held = [running.reserve(100) for _ in range(8)]
    with pytest.raises(BusyError):
        running.reserve(100)
    held.append(running.reserve(100, client="b"))
    for reservation in held:
        reservation.release()


def test_who_would_not_be_answered_in_time_is_refused_at_once(make):
    running = make(max_batch_images=2).start()
    running.engine._seconds_per_image = 2.5
    # Behind four are four and a batch of two: 15 seconds of work.
    held = [running.reserve(1, seconds=20) for _ in range(4)]
    with pytest.raises(BusyError, match=r"4 images.*too late") as caught:
        running.reserve(1, seconds=14)
    assert caught.value.retry_after == 10
    held.append(running.reserve(1, seconds=16))
    # Another client's turn comes after one image of the first.
    held.append(running.reserve(1, client="b", seconds=8))
    for reservation in held:
        reservation.release()
    # An estimate, however wrong, keeps nobody out of an idle service.
    running.engine._seconds_per_image = 1e9
    running.reserve(1, seconds=1).release()


def test_clients_take_turns(make):
    running = make(max_batch_images=3).start()
    first = running.occupy()
    futures = [running.submit(number) for number in range(6)]
    futures += [running.submit(number, client="b") for number in (10, 11)]
    futures.append(running.submit(20, client="c"))
    running.pipeline.go.set()
    for future in (first, *futures):
        result(future)
    assert running.pipeline.batches == [[255], [0, 10, 20], [1, 11, 2], [3, 4, 5]]


def test_nobody_waits_for_all_people_of_many_images(make):
    running = make(max_batch_people=64).start()
    first = running.occupy()
    boxes = np.zeros((40, 4), np.float32)
    crowds = [Options("model", boxes=boxes, flip_test=flip) for flip in (False, False, True, True)]
    futures = [running.submit(number, options=crowd) for number, crowd in enumerate(crowds)]
    futures.append(running.submit(4))
    running.pipeline.go.set()
    for future in (first, *futures):
        result(future)
    assert running.pipeline.batches == [[255], [0, 1], [2], [3], [4]]


def test_it_is_ready_only_once_warm(make):
    warm = threading.Event()

    class Slow(Echo):
        def warm_up(self):
            assert warm.wait(PATIENCE)

    slow = Slow()
    fixture = make(build=lambda: slow)
    assert not fixture.engine.alive
    fixture.engine.start()
    assert fixture.engine.alive
    assert not fixture.engine.ready
    with pytest.raises(NotReadyError):
        fixture.submit(1)
    with pytest.raises(NotReadyError):
        fixture.reserve(1)
    warm.set()
    wait_for(fixture.engine, lambda: fixture.engine.ready)
    assert fixture.value("pose_ready") == 1
    assert result(fixture.submit(1)).model == "1"


def test_a_start_that_fails_is_told(make):
    def build():
        raise OSError("no such weights")

    failed = make(build=build).start()
    failed.engine._thread.join(PATIENCE)
    assert failed.engine.failure == "OSError: no such weights"
    assert failed.fatal == ["OSError: no such weights"]
    assert not failed.engine.alive
    assert not failed.engine.ready
    with pytest.raises(NotReadyError, match="failed"):
        failed.submit(1)


@pytest.mark.parametrize(
    "error",
    [torch.AcceleratorError("an illegal memory access"), RuntimeError("CUDA error: unknown")],
)
def test_a_lost_device_ends_the_engine_and_fails_whoever_waits(make, error):
    running = make().start()
    running.pipeline.failures = {255: error}
    futures = [running.occupy(), running.submit(1), running.submit(2)]
    assert futures[2].cancel()
    running.pipeline.go.set()
    for future in futures[:2]:
        with pytest.raises(InferenceError):
            result(future)
    running.engine._thread.join(PATIENCE)
    assert running.pipeline.batches == [[255]]
    assert not running.engine.alive
    assert not running.engine.ready
    assert str(error) in running.engine.failure
    assert running.fatal == [running.engine.failure]
    assert running.value("pose_ready") == 0
    assert not running.engine.drain(PATIENCE)
    with pytest.raises(NotReadyError):
        running.submit(3)


def test_a_death_that_nobody_foresaw_leaves_nobody_waiting(make):
    running = make().start()
    running.pipeline.failures = {255: SystemExit("out of the blue")}
    futures = [running.occupy(), running.submit(1)]
    running.pipeline.go.set()
    for future in futures:
        with pytest.raises(InferenceError):
            result(future)
    running.engine._thread.join(PATIENCE)
    assert "out of the blue" in running.engine.failure
    assert not running.engine.alive


def test_a_batch_may_be_long_but_not_for_ever(make, monkeypatch):
    running = make(heartbeat_seconds=30).start()
    first = running.occupy()
    now = time.monotonic()
    monkeypatch.setattr(app.engine, "monotonic", lambda: now + 29)
    assert running.engine.alive
    monkeypatch.setattr(app.engine, "monotonic", lambda: now + 31)
    assert not running.engine.alive
    running.pipeline.go.set()
    result(first)
    wait_for(running.engine, lambda: not running.engine._running)
    assert running.engine.alive


def test_draining_finishes_what_was_let_in(make):
    running = make().start()
    first = running.occupy()
    queued = running.submit(1)
    reservation = running.reserve(1)
    with ThreadPoolExecutor(1) as pool:
        drained = pool.submit(running.engine.drain, PATIENCE)
        wait_for(running.engine, lambda: running.engine._draining)
        assert not running.engine.ready
        assert running.engine.alive
        with pytest.raises(DrainingError):
            running.reserve(1)
        decoded = running.submit(2)
        running.pipeline.go.set()
        assert [result(future).model for future in (first, queued, decoded)] == ["255", "1", "2"]
        assert not drained.done()
        reservation.release()
        assert drained.result(PATIENCE)
    assert not running.engine._thread.is_alive()
    with pytest.raises(DrainingError):
        running.submit(3)


def test_draining_takes_only_so_long(make):
    running = make().start()
    first = running.occupy()
    queued = running.submit(1)
    assert not running.engine.drain(0)
    with pytest.raises(DrainingError):
        result(queued)
    running.pipeline.go.set()
    assert result(first).model == "255"
    running.engine._thread.join(PATIENCE)
    assert not running.engine._thread.is_alive()


def test_draining_while_it_still_starts(make):
    warm = threading.Event()

    class Slow(Echo):
        def warm_up(self):
            assert warm.wait(PATIENCE)

    slow = Slow()
    fixture = make(build=lambda: slow)
    fixture.engine.start()
    assert fixture.engine.drain(0)
    warm.set()
    fixture.engine._thread.join(PATIENCE)
    assert not fixture.engine._thread.is_alive()
    assert not fixture.engine.ready


def test_an_idle_engine_keeps_no_images(make):
    class Watched(np.ndarray):
        """An array that can be referred to weakly."""

    running = make().start()
    image = image_of(9).view(Watched)
    watch = weakref.ref(image)
    future = running.engine.submit(image, OPTIONS, "a", time.monotonic() + PATIENCE)
    del image
    result(future)
    wait_for(running.engine, lambda: not running.engine._running)
    assert watch() is None
