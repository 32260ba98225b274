"""Both clients at the real service, behind a socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from posemux_client import (
    AsyncClient,
    BadImageError,
    BusyError,
    Client,
    DeadlineExceededError,
    DrainingError,
    InvalidParameterError,
    PosemuxError,
    Poses,
    ProblemError,
    TooLargeError,
    TooManyRequestsError,
    UnauthorizedError,
    UnknownModelError,
    UnreachableError,
    UnsupportedImageTypeError,
)

from app import images
from models.coco import JOINT_NAMES
from tests.app.api_support import Running, png

KEY = "alice-0123456789"
#: Somebody at (7, 8), and nobody.
PHOTO, NOBODY = png(7, 8, 102), png(0, 0, 0)


def settings(**given: Any) -> pytest.MarkDecorator:
    """The service's, of a test."""
    return pytest.mark.parametrize("running", [given], indirect=True)


@pytest.fixture
def running(make: Any, request: pytest.FixtureRequest, tmp_path: Path) -> Running:
    given = getattr(request, "param", {})
    if "api_keys_file" in given:
        (tmp_path / "keys").write_text(f"alice:{KEY}\n")
        given = {**given, "api_keys_file": tmp_path / "keys"}
    started: Running = make(**given)
    return started


class Caller:
    """Calls either client: `caller(url).pose(...)`; remembers how long it would have waited."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.waits: list[float] = []
        self.now = 0.0
        self.meanwhile: Callable[[], object] = lambda: None

    def __call__(self, url: str = "http://test", **options: Any) -> Any:
        return _Called(self, {"url": url, "clock": lambda: self.now, **options})

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        self.meanwhile()


class _Called:
    def __init__(self, caller: Caller, options: dict[str, Any]) -> None:
        self._caller = caller
        self._options = options

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if self._caller.kind == "sync":
                return self._call(name, args, options)
            return asyncio.run(self._await(name, args, options))

        return call

    def _call(self, name: str, args: Any, options: Any) -> Any:
        transport = self._options.pop("transport", None)
        if transport is not None:
            self._options["http"] = httpx.Client(transport=transport)
        with Client(**self._options, sleep=self._caller.wait) as client:
            return getattr(client, name)(*args, **options)

    async def _await(self, name: str, args: Any, options: Any) -> Any:
        async def sleep(seconds: float) -> None:
            self._caller.wait(seconds)

        transport = self._options.pop("transport", None)
        if transport is not None:
            self._options["http"] = httpx.AsyncClient(transport=transport)
        async with AsyncClient(**self._options, sleep=sleep) as client:
            return await getattr(client, name)(*args, **options)


@pytest.fixture(params=["sync", "async"])
def caller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Caller:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return Caller(request.param)


# ------------------------------------------------------------------------------------- answers


@pytest.fixture(params=["bytes", "path", "text", "pixels"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    path = tmp_path / "photo.png"
    path.write_bytes(PHOTO)
    pixels = np.full((280, 300, 3), (7, 8, 102), np.uint8)
    return {"bytes": PHOTO, "path": path, "text": str(path), "pixels": pixels}[request.param]


def test_poses_are_arrays(served: str, caller: Caller, image: Any) -> None:
    poses: Poses = caller(served).pose(image)
    assert len(poses) == 1
    assert (poses.width, poses.height) == (300, 280)
    for array, shape in (
        (poses.boxes, (1, 4)),
        (poses.scores, (1,)),
        (poses.keypoints, (1, 17, 3)),
    ):
        assert array.shape == shape
        assert array.dtype == np.float32
    np.testing.assert_allclose(poses.boxes, [[7, 8, 17, 28]])
    np.testing.assert_allclose(poses.scores, [0.4])
    np.testing.assert_allclose(poses.joint("left_wrist"), [[7, 8, 0.4]])
    with pytest.raises(ValueError, match="has no joint 'tail'; it has nose, left_eye"):
        poses.joint("tail")
    assert poses.model.name == "simcc-small"
    assert poses.model.joint_names == JOINT_NAMES
    assert poses.timings_ms["total"] > 0
    assert poses.request_id
    assert poses.explanations is None


def test_nobody_is_an_empty_answer(served: str, caller: Caller) -> None:
    poses: Poses = caller(served).pose(NOBODY)
    assert len(poses) == 0
    assert poses.keypoints.shape == (0, 17, 3)
    assert poses.boxes.shape == (0, 4)


def test_several_images_are_answered_in_their_order(served: str, caller: Caller) -> None:
    contents = [png(1, 2, 255), NOBODY, png(3, 4, 255, (20, 10))]
    first, second, third = caller(served).pose_many(contents)
    assert first.boxes[:, 0].tolist() == [1]
    assert len(second) == 0
    assert third.boxes[:, 0].tolist() == [3]
    assert (third.width, third.height) == (20, 10)


def test_every_option_arrives(served: str, running: Running, caller: Caller) -> None:
    boxes = np.array([[1.5, 2, 30, 40], [5, 6, 70, 80]], np.float32)
    poses = caller(served).pose(
        PHOTO,
        model="dark-small",
        representation=None,
        boxes=boxes,
        min_score=0.25,
        max_people=5,
        flip_test=True,
        explain=False,
        request_id="my-own-name",
    )
    [(_, seen)] = running.pipeline.seen
    assert (seen.model, seen.min_score, seen.max_people, seen.flip_test, seen.explain) == (
        *("dark-small", 0.25, 5, True, False),
    )
    np.testing.assert_array_equal(seen.boxes, boxes)
    np.testing.assert_allclose(poses.boxes, boxes)
    assert poses.request_id == "my-own-name"
    assert poses.model.representation == "dark"


def test_options_are_checked_by_name(caller: Caller) -> None:
    with pytest.raises(TypeError, match="no option min_scores; known are representation, model"):
        caller().pose(PHOTO, min_scores=0.5)


@pytest.mark.parametrize("format", ["jpeg", "png"])
def test_the_drawn_picture(served: str, caller: Caller, format: str) -> None:
    drawn = caller(served).draw(PHOTO, format, representation="pct")
    assert images.sniff(drawn) == format.upper()
    assert images.size(drawn, 10**6) == (300, 280)


def test_models(served: str, caller: Caller) -> None:
    models = caller(served).models()
    assert models.default == "simcc-small"
    simcc = models.by_name["simcc-small"]
    assert simcc.loaded
    assert simcc.milliseconds == 12.5
    assert simcc.joint_names == JOINT_NAMES
    assert simcc.skeleton[0] == (15, 13)
    assert simcc.flip_pairs[0] == (1, 2)
    assert simcc.input_size == (192, 256)
    assert simcc.card["backbone"]


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
def test_pixels_are_sent_as_they_are(width: int) -> None:
    from posemux_client.exchange import _bmp

    pixels = np.random.default_rng(0).integers(0, 256, (3, width, 3), np.uint8)
    np.testing.assert_array_equal(images.decode(_bmp(pixels), 100), pixels)
    np.testing.assert_array_equal(images.decode(_bmp(pixels[::-1, ::-1]), 100), pixels[::-1, ::-1])


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)],
)
def test_what_are_no_pixels_is_told(caller: Caller, pixels: Any) -> None:
    with pytest.raises(ValueError, match=r"must be uint8 RGB of \(height, width, 3\)"):
        caller().pose(pixels)


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("image", "options", "kind", "status"),
    [
        (PHOTO[:50], {}, BadImageError, 400),
        (b"no image", {}, UnsupportedImageTypeError, 415),
        (PHOTO, {"model": "hrnet-9000"}, UnknownModelError, 404),
        (PHOTO, {"min_score": 7}, InvalidParameterError, 422),
        (PHOTO, {"boxes": [[5, 5, 1, 1]]}, InvalidParameterError, 422),
        (bytes(21 * 2**20), {}, TooLargeError, 413),
    ],
)
def test_problems_are_exceptions(
    served: str, caller: Caller, image: bytes, options: Any, kind: type[ProblemError], status: int
) -> None:
    with pytest.raises(kind) as caught:
        caller(served).pose(image, request_id="my-own-name", **options)
    problem = caught.value
    assert problem.status == status
    assert problem.type == kind.kind
    assert problem.request_id == "my-own-name"
    assert problem.detail
    assert str(problem) == f"{status} {problem.title}: {problem.detail}"
    assert caller.waits == []


def test_an_answer_of_somebody_else_is_told(caller: Caller) -> None:
    for answer in (
        httpx.Response(200, text="<html>Log in!</html>"),
        httpx.Response(200, json={"model": 3}),
        httpx.Response(200, json=[]),
    ):
        transport = httpx.MockTransport(lambda _, answer=answer: answer)
        with pytest.raises(PosemuxError, match="something else than posemux does"):
            caller(transport=transport).pose(PHOTO)


def test_an_error_of_somebody_else_is_one_too(caller: Caller) -> None:
    answer = httpx.Response(403, text="not for you", headers={"X-Request-ID": "abc"})
    with pytest.raises(ProblemError, match=r"^403 Forbidden: not for you$") as caught:
        caller(transport=httpx.MockTransport(lambda _: answer)).pose(PHOTO)
    assert type(caught.value) is ProblemError
    assert caught.value.request_id == "abc"


@settings(api_keys_file="keys")
def test_a_key_goes_along(served: str, caller: Caller) -> None:
    for key in (None, "nobody-0123456789"):
        with pytest.raises(UnauthorizedError):
            caller(served, api_key=key).pose(PHOTO)
    assert len(caller(served, api_key=KEY).pose(PHOTO)) == 1
    assert caller.waits == []


@settings(deadline_seconds=0.01)
def test_a_late_answer_is_not_asked_for_again(
    served: str, running: Running, caller: Caller
) -> None:
    running.pipeline.hold()
    with pytest.raises(DeadlineExceededError):
        caller(served).pose(PHOTO)
    assert caller.waits == []


def test_a_file_that_is_not_there(caller: Caller) -> None:
    with pytest.raises(FileNotFoundError):
        caller().pose("nowhere.jpg")


# -------------------------------------------------------------------------------- trying again


def fill(running: Running) -> None:
    """Keep the device and the queue busy."""
    running.pipeline.hold()
    running.engine.submit(*running.job())
    running.pipeline.wait_until_entered()
    running.engine.submit(*running.job())


def work_off(running: Running) -> None:
    running.pipeline.go.set()
    running.until(lambda: not running.engine.queue_depth)


@settings(max_images=1, max_queue=1, max_batch_images=1)
def test_a_busy_service_is_asked_again(served: str, running: Running, caller: Caller) -> None:
    fill(running)
    caller.meanwhile = lambda: work_off(running)
    assert len(caller(served).pose(PHOTO)) == 1
    [wait] = caller.waits
    # What the service says, and a little more, so that not all come back together.
    assert 1 <= wait <= 1.25


@settings(max_images=1, max_queue=1, max_batch_images=1)
def test_patience_ends(served: str, running: Running, caller: Caller) -> None:
    fill(running)
    with pytest.raises(BusyError) as caught:
        caller(served, patience=10).pose(PHOTO)
    assert caught.value.retry_after == 1
    assert 7 <= len(caller.waits) <= 10
    assert caller.now <= 10
    caller.waits.clear()
    with pytest.raises(BusyError):
        caller(served, patience=0).pose(PHOTO)
    assert caller.waits == []


@settings(api_keys_file="keys", key_rate=0.001, key_burst=1)
def test_a_long_way_off_is_not_waited_for(served: str, caller: Caller) -> None:
    called = caller(served, api_key=KEY)
    with pytest.raises(TooManyRequestsError) as caught:
        called.pose(PHOTO), called.pose(PHOTO)
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 900
    assert caller.waits == []


def test_a_service_that_goes_down_is_asked_again(
    served: str, running: Running, caller: Caller
) -> None:
    with running.engine._changed:
        running.engine._draining = True
    with pytest.raises(DrainingError):
        caller(served, patience=20).pose(PHOTO)
    # Another one may have taken its place.
    assert len(caller.waits) == 3
    assert min(caller.waits) >= 5


def answers(*outcomes: httpx.Response | Exception) -> httpx.MockTransport:
    """Each outcome in turn, and then the poses of nobody."""
    waiting = list(outcomes)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            # Whole each time.
            assert PHOTO in request.read()
        if waiting and isinstance(outcome := waiting.pop(0), Exception):
            raise outcome
        if "outcome" in locals():
            return outcome
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"default": "simcc-small", "models": [CARD]})
        return httpx.Response(200, json=BODY)

    return httpx.MockTransport(answer)


CARD = {
    **{"name": "simcc-small", "representation": "simcc", "loaded": True, "scores": "raw"},
    **{"joint_names": ["nose"], "skeleton": [], "flip_pairs": [], "input_size": [192, 256]},
    **{"licence": "AGPL", "milliseconds": None},
}
BODY = {
    **{"request_id": "x", "model": "simcc-small", "predictions": [], "timings_ms": {}},
    "images": [{"id": 0, "width": 1, "height": 1}],
}


@pytest.mark.parametrize("several", [False, True])
def test_a_cut_connection_is_tried_again(caller: Caller, several: bool) -> None:
    cut = [httpx.ConnectError("refused"), httpx.RemoteProtocolError("disconnected")]
    transport = answers(*cut, httpx.ReadError("reset"), httpx.Response(502, text="bad gateway"))
    called = caller(transport=transport)
    if several:
        called.pose_many([PHOTO, PHOTO])
    else:
        called.pose(PHOTO)
    for wait, least in zip(caller.waits, (0.25, 0.5, 1, 2), strict=True):
        assert least <= wait <= 1.25 * least


def test_a_slow_answer_is_not(caller: Caller) -> None:
    with pytest.raises(UnreachableError, match="ReadTimeout: slow") as caught:
        caller(transport=answers(httpx.ReadTimeout("slow"))).pose(PHOTO)
    assert isinstance(caught.value.__cause__, httpx.ReadTimeout)
    assert caller.waits == []


def test_nobody_there_is_told_in_the_end(caller: Caller) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        with pytest.raises(UnreachableError, match=r"^ConnectError: "):
            caller(f"http://127.0.0.1:{port}", patience=5).pose(PHOTO)
    assert len(caller.waits) >= 3
    assert caller.now <= 5


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("7", 7, 8.75),
        (None, 240, 375),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0, 0),
        ("soon", 0.25, 0.3125),
    ],
)
def test_every_form_of_retry_after(
    caller: Caller, header: str | None, least: float, most: float
) -> None:
    if header is None:
        header = format_datetime(datetime.now(UTC) + timedelta(seconds=300), usegmt=True)
    busy = httpx.Response(503, headers={"Retry-After": header})
    caller(transport=answers(busy), patience=1000).pose(PHOTO)
    [wait] = caller.waits
    assert least <= wait <= most


def test_models_are_asked_for_once() -> None:
    asked: list[str] = []
    inner = answers()

    def noting(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        answer = inner.handler(request)
        assert isinstance(answer, httpx.Response)
        return answer

    with Client(
        "http://test/poses/", http=httpx.Client(transport=httpx.MockTransport(noting))
    ) as client:
        client.pose(PHOTO)
        client.pose(PHOTO)
    assert asked == ["/poses/pose", "/poses/models", "/poses/pose"]
