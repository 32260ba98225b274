"""`POST /pose`: images in, poses out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from time import monotonic, perf_counter
from typing import Annotated, Any, TypeVar

import numpy as np
import numpy.typing as npt
import orjson
from fastapi import APIRouter, Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import Response

from app import images, render
from app.api import Service, client_of, current_service
from app.api.estimating import (
    STAGES,
    Answered,
    Upload,
    estimate,
    in_thread,
    milliseconds,
    most_people,
    refuse_repeated,
)
from app.api.models import choose
from app.api.problems import responses
from app.errors import (
    BadImageError,
    BusyError,
    CancelledJobError,
    DeadlineExceededError,
    DrainingError,
    InferenceError,
    InvalidParameterError,
    NotAcceptableError,
    NotFiniteError,
    NotReadyError,
    PosemuxError,
    TooLargeError,
    UnknownModelError,
    UnsupportedImageTypeError,
    UploadTimeoutError,
)
from app.explanations import MAX_EXPLAINED
from app.pipeline import Options
from app.schemas import BOXES, PoseQuery, PoseResponse, coco_results
from app.settings import Settings
from models import Card

router = APIRouter(tags=["pose"])

T = TypeVar("T")

_JSON = "application/json"
#: The bodies that there are, the one for clients without a preference first.
_PRODUCED = (_JSON, "image/jpeg", "image/png")
#: Form fields other than images, which there should be none of: enough to say what is wrong.
_MAX_FIELDS = 16

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_REQUEST_BODY = {
    "required": True,
    "description": f"One image as the body itself, or several as form fields. {images.ACCEPTED} "
    "are told apart by their content.",
    "content": {
        "image/jpeg": _BINARY,
        "image/png": _BINARY,
        "image/webp": _BINARY,
        "image/bmp": _BINARY,
        "image/gif": _BINARY,
        "application/octet-stream": _BINARY,
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {
                    "image": {
                        "type": "array",
                        "items": {"type": "string", "format": "binary"},
                        "description": "Repeat the field for several images.",
                    }
                },
            }
        },
    },
}
_EXAMPLE_JOINTS = [
    *((142.5, 441.9, 0.93), (147.1, 433.2, 0.92), (137.4, 432.8, 0.41)),
    *((158.6, 437.0, 0.88), (131.9, 437.5, 0.22), (172.8, 489.3, 0.94)),
    *((113.7, 486.1, 0.91), (187.2, 553.0, 0.83), (98.4, 556.7, 0.86)),
    *((151.3, 570.8, 0.79), (128.8, 590.2, 0.77), (165.0, 634.6, 0.91)),
    *((122.6, 633.1, 0.90), (182.9, 733.4, 0.92), (117.3, 741.5, 0.90)),
    *((198.7, 838.0, 0.89), (96.2, 846.3, 0.87)),
]
_EXAMPLE = {
    "request_id": "5f0c6f4a3b1e4d0f9a5c7d2e8b6a1c3d",
    "representation": "simcc",
    "model": "simcc-small",
    "images": [{"id": 0, "width": 810, "height": 1080}],
    "predictions": [
        {
            "image_id": 0,
            "category_id": 1,
            "bbox": [48.55, 398.55, 196.8, 504.15],
            "score": 0.8131,
            "keypoints": [value for joint in _EXAMPLE_JOINTS for value in joint],
        }
    ],
    "timings_ms": {
        "decode": 5.1,
        "queue": 0.2,
        "detect": 21.4,
        "crop": 1.3,
        "pose": 9.8,
        "postprocess": 0.6,
        "total": 39.7,
    },
}


@router.post(
    "/pose",
    response_class=Response,
    openapi_extra={"requestBody": _REQUEST_BODY},
    responses={
        200: {
            "model": PoseResponse,
            "description": "The poses; or, by `Accept`, the image with the poses drawn onto it.",
            "content": {
                _JSON: {"example": _EXAMPLE},
                "image/jpeg": _BINARY,
                "image/png": _BINARY,
            },
        },
        **responses(
            BadImageError,
            UnknownModelError,
            NotAcceptableError,
            UploadTimeoutError,
            TooLargeError,
            UnsupportedImageTypeError,
            InvalidParameterError,
            InferenceError,
            NotFiniteError,
            BusyError,
            DrainingError,
            NotReadyError,
            DeadlineExceededError,
        ),
    },
)
async def estimate_poses(
    request: Request,
    query: Annotated[PoseQuery, Query()],
    service: Annotated[Service, Depends(current_service)],
) -> Response:
    """Find the people in images and where their joints are.

    The image is the body itself:

        curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' 'localhost:8000/pose'

    or, for several at once, the form field `image`, repeated:

        curl -F image=@one.jpg -F image=@two.png 'localhost:8000/pose?representation=pct'

    With `Accept: image/jpeg` or `image/png` the answer to a single image is that image with the
    skeletons drawn onto it.
    """
    refuse_repeated(request)
    card = choose(service, query.representation, query.model)
    request.state.representation = card.representation
    request.state.details.update(representation=card.representation, model=card.name)
    options = _options(service.settings, query, card)
    media_type = negotiate(",".join(request.headers.getlist("Accept")))
    with Upload(service.uploads, client_of(request)) as upload:
        encoded = await _read_images(request, service.settings, upload)
        _check_single(len(encoded), query, media_type)
        return await _unless_late_or_gone(
            request,
            service.settings.deadline_seconds,
            lambda deadline: _answer(request, service, options, encoded, media_type, deadline),
        )


# ------------------------------------------------------------------------------------ the request


def negotiate(accept: str) -> str:
    """The media type that a client likes best, of those that there are (RFC 9110, 12.5.1).

    Raises:
        NotAcceptableError: it likes none of them.
    """
    ranges: dict[str, float] = {}
    for item in accept.lower().split(",") if accept.strip() else ["*/*"]:
        media_range, *parameters = (part.strip() for part in item.split(";"))
        quality = dict(part.partition("=")[::2] for part in parameters).get("q", "1")
        try:
            ranges[media_range] = float(quality)
        except ValueError:
            ranges[media_range] = 0

    def liking(media_type: str) -> float:
        # The most specific range that it falls into has the say.
        for media_range in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
            if media_range in ranges:
                return ranges[media_range]
        return 0

    best = max(_PRODUCED, key=liking)
    if not liking(best) > 0:
        raise NotAcceptableError(f"The answer can be {', '.join(_PRODUCED)}, not {accept}.")
    return best


def _check_single(count: int, query: PoseQuery, media_type: str) -> None:
    if query.explain and media_type != _JSON:
        raise InvalidParameterError(f"explain is for an answer in {_JSON}, not in {media_type}.")
    if count == 1:
        return
    for asked, what in (
        (query.boxes is not None, "boxes"),
        (query.explain, "explain"),
        (media_type != _JSON, media_type),
    ):
        if asked:
            raise InvalidParameterError(
                f"{what} is for a request with one image; this one has {count}."
            )


async def _read_images(request: Request, settings: Settings, upload: Upload) -> list[bytes]:
    """The encoded images of a request's body.

    Raises:
        BusyError: there is no room for its bytes.
        InvalidParameterError: the form is malformed, or holds something else than images.
        TooLargeError: too many bytes or images; found out before they are all read.
        UnsupportedImageTypeError: the body is declared to be something else.
        UploadTimeoutError: it takes too long to come in.
    """
    declared = request.headers.get("Content-Type", "")
    media_type = declared.partition(";")[0].strip().lower()
    try:
        async with asyncio.timeout(settings.transfer_seconds):
            if media_type == "multipart/form-data":
                return await _read_form(request, settings, upload)
            if media_type.startswith("image/") or media_type == "application/octet-stream":
                body = bytearray()
                most = settings.max_image_bytes
                async with aclosing(_limited(request, most, upload)) as chunks:
                    async for chunk in chunks:
                        body += chunk
                return [bytes(body)]
    except TimeoutError as error:
        raise UploadTimeoutError(
            f"The body was not in after {settings.transfer_seconds:g} seconds."
        ) from error
    raise UnsupportedImageTypeError(
        f"The Content-Type is {declared or 'missing'}. Accepted: image/* or "
        f"application/octet-stream with the image as the body, or multipart/form-data with the "
        f"field image. The images may be {images.ACCEPTED}."
    )


async def _read_form(request: Request, settings: Settings, upload: Upload) -> list[bytes]:
    async with aclosing(_limited(request, settings.max_request_bytes, upload)) as chunks:
        parser = MultiPartParser(
            request.headers, chunks, max_files=settings.max_images, max_fields=_MAX_FIELDS
        )
        # Its bytes are counted already: no need for the detour over a disk.
        parser.spool_max_size = settings.max_request_bytes
        try:
            form = await parser.parse()
        except MultiPartException as error:
            if error.message.startswith("Too many files"):
                raise TooLargeError(
                    f"There are more than the {settings.max_images} images that are accepted."
                ) from error
            raise InvalidParameterError(
                f"The form cannot be read: {error.message} Accepted: the field image as a file."
            ) from error
    try:
        return await _form_images(form, settings.max_image_bytes)
    finally:
        await form.close()


async def _form_images(form: FormData, max_bytes: int) -> list[bytes]:
    parts = form.multi_items()
    encoded: list[bytes] = []
    for name, value in parts:
        if name != "image" or isinstance(value, str):
            raise InvalidParameterError(
                f"The form's field {name} is not an image file. Accepted: the field image as a "
                f"file, repeated for several; parameters belong into the query."
            )
        data = await value.read()
        with _naming(len(encoded), len(parts)):
            if len(data) > max_bytes:
                raise _too_many_bytes(max_bytes)
        encoded.append(data)
    if not encoded:
        raise InvalidParameterError("The form has no images. Accepted: the field image as a file.")
    return encoded


async def _limited(request: Request, most: int, upload: Upload) -> AsyncGenerator[bytes, None]:
    """The body as it comes in, up to a limit."""
    declared = request.headers.get("Content-Length", "")
    if declared.isdecimal() and int(declared) > most:
        raise _too_many_bytes(most)
    count = 0
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            count += len(chunk)
            if count > most:
                raise _too_many_bytes(most)
            upload.grow(len(chunk))
            yield chunk


def _too_many_bytes(most: int) -> TooLargeError:
    return TooLargeError(f"There are more bytes than the {most} that are accepted.")


# ------------------------------------------------------------------------------------- the answer


async def _unless_late_or_gone(
    request: Request, seconds: float, work: Callable[[float], Coroutine[Any, Any, T]]
) -> T:
    """Await some work for as long as somebody waits for it; then it is cancelled.

    Args:
        request: its body has been read.
        seconds: the time there is.
        work: called with the deadline in `time.monotonic()`.

    Raises:
        CancelledJobError: the client has closed the connection.
        DeadlineExceededError: the deadline has passed.
    """
    working = asyncio.create_task(work(monotonic() + seconds))
    # After the body there is only one more message: that the client has gone.
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((working, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if gone.done():
            raise CancelledJobError("The client closed the request.")
        raise DeadlineExceededError(f"There was no answer within {seconds:g} seconds.")
    finally:
        working.cancel()
        gone.cancel()
        # The room that the work has taken is given back before anybody hears of its end.
        await asyncio.gather(working, gone, return_exceptions=True)


async def _answer(
    request: Request,
    service: Service,
    options: Options,
    encoded: Sequence[bytes],
    media_type: str,
    deadline: float,
) -> Response:
    """Everything from the encoded images to the response."""
    client = client_of(request)
    areas = await in_thread(service, client, _areas, encoded, service.settings.max_image_pixels)
    most = service.settings.max_pixels_in_flight
    if len(areas) > 1 and sum(areas) > most:
        # Waiting for others to finish would not help.
        raise TooLargeError(
            f"All images have {sum(areas)} pixels together, of which {most} are accepted."
        )
    with service.engine.reserve(areas, client, deadline):
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(_estimate(service, client, options, encoded, index, deadline))
                    for index in range(len(encoded))
                ]
        except BaseExceptionGroup as errors:
            # The first to fail: because of it the others have been cancelled.
            raise errors.exceptions[0] from None
        done = [task.result() for task in tasks]
        timings = {
            "decode": max(image.decode_seconds for image in done),
            **{stage: max(image.poses.timings[stage] for image in done) for stage in STAGES},
        }
        request.state.details.update(
            images=len(done),
            people=sum(len(image.poses.scores) for image in done),
            timings_ms=milliseconds(timings),
        )
        if media_type == _JSON:
            body = _body(request, done, timings)
        else:
            body = await in_thread(service, client, _drawing, service, done[0], media_type)
    server_timing = ", ".join(f"{stage};dur={1000 * timings[stage]:.2f}" for stage in timings)
    return Response(body, headers={"Server-Timing": server_timing}, media_type=media_type)


async def _estimate(
    service: Service,
    client: str,
    options: Options,
    encoded: Sequence[bytes],
    index: int,
    deadline: float,
) -> Answered:
    """One of the images."""
    traced = partial(service.tracing.stages, image=index)
    with _naming(index, len(encoded)):
        return await estimate(service, client, options, encoded[index], deadline, traced)


def _options(settings: Settings, query: PoseQuery, card: Card) -> Options:
    """What the engine is to do with each image.

    Raises:
        InvalidParameterError: too many people, or a box without an inside.
        RequestValidationError: the boxes are not a list of boxes.
    """
    most, why = settings.max_people, ""
    if query.explain:
        most, why = min(most, MAX_EXPLAINED), " with explain"
    max_people = most_people(query.max_people, most, why)
    boxes = None if query.boxes is None else _boxes(query.boxes)
    if boxes is not None and len(boxes) > max_people:
        raise InvalidParameterError(
            f"There are {len(boxes)} boxes. Accepted{why}: up to {max_people}."
        )
    return Options(
        model=card.name,
        boxes=boxes,
        min_score=settings.min_score if query.min_score is None else query.min_score,
        max_people=max_people,
        flip_test=query.flip_test,
        explain=query.explain,
    )


def _boxes(text: str) -> npt.NDArray[np.float32]:
    try:
        corners = BOXES.validate_python(text)
    except ValidationError as error:
        raise RequestValidationError(
            [{**item, "loc": ("query", "boxes", *item["loc"])} for item in error.errors()]
        ) from error
    boxes = np.array(corners, np.float32).reshape(-1, 4)
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(1)
    for index in np.flatnonzero(empty):
        raise InvalidParameterError(
            f"boxes[{index}] is {list(corners[index])}, which is empty. Accepted: "
            f"[x1, y1, x2, y2] with x1 < x2 and y1 < y2."
        )
    return boxes


def _body(request: Request, done: Sequence[Answered], timings: Mapping[str, float]) -> bytes:
    total = perf_counter() - request.state.begin
    return orjson.dumps(
        {
            "request_id": request.state.request_id,
            "representation": request.state.representation,
            "model": done[0].poses.model,
            "images": [
                {"id": index, "width": one.image.shape[1], "height": one.image.shape[0]}
                for index, one in enumerate(done)
            ],
            "predictions": [
                result
                for index, one in enumerate(done)
                for result in coco_results(index, one.poses)
            ],
            "timings_ms": milliseconds({**timings, "total": total}),
        }
    )


# ------------------------------------------------------------------------------- in other threads


def _areas(encoded: Sequence[bytes], max_pixels: int) -> list[int]:
    """Pixels of each image by its header, which a client may have made long to read."""
    areas = []
    for index, data in enumerate(encoded):
        with _naming(index, len(encoded)):
            width, height = images.size(data, max_pixels)
        areas.append(width * height)
    return areas


def _drawing(service: Service, one: Answered, media_type: str) -> bytes:
    poses = one.poses
    begin = perf_counter()
    skeleton = service.cards[poses.model].architecture.skeleton
    drawn = render.draw(one.image, poses.keypoints, poses.boxes, poses.scores, skeleton=skeleton)
    body = render.encode(drawn, "jpeg" if media_type == "image/jpeg" else "png")
    seconds = perf_counter() - begin
    service.metrics.stage_duration.labels("encode").observe(seconds)
    service.tracing.stages({"encode": seconds}, 0)
    return body


@contextmanager
def _naming(index: int, count: int) -> Iterator[None]:
    """Say which one of several images an error is about."""
    try:
        yield
    except PosemuxError as error:
        if count > 1:
            error.detail = f"Image {index}: {error.detail}"
        raise
